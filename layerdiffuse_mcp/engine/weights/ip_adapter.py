"""IP-Adapters and the image encoders that they go with -> `Part`, with no hub access.

    part = read_ip_adapter(Path("ip-adapter-plus_sd15.safetensors"))
    encoder = read_image_encoder(Path("image_encoder"))         # a folder with config.json and model.safetensors

The adapter's file is that of its authors (Ye et al., "IP-Adapter", 2023): `image_proj.*`, and a pair of projections for
each cross attention of the UNet. Plain ones and plus are read.
"""

import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import cast

from diffusers.models.embeddings import ImageProjection, IPAdapterPlusImageProjection
from torch import Tensor, nn

from layerdiffuse_mcp.engine.text.clip_vision import VisionConfig, VisionEncoder
from layerdiffuse_mcp.engine.weights.checkpoint import Part, Weights
from layerdiffuse_mcp.engine.weights.diffusers_folder import read_config, weight_files
from layerdiffuse_mcp.engine.weights.ldm_names import Origin, half
from layerdiffuse_mcp.engine.weights.tensor_file import TensorFile
from layerdiffuse_mcp.errors import CheckpointError

TITLE, ENCODER = "IP-Adapter", "image encoder"
PROJECTION = "image_proj."
HEAD = 64
"""Width of the heads in a plus adapter."""
PLUS = (
    (r"layers\.(\d+)\.0\.norm1\.", r"layers.\1.ln0."),
    (r"layers\.(\d+)\.0\.norm2\.", r"layers.\1.ln1."),
    (r"layers\.(\d+)\.0\.to_out\.", r"layers.\1.attn.to_out.0."),
    (r"layers\.(\d+)\.0\.", r"layers.\1.attn."),
    (r"layers\.(\d+)\.1\.0\.", r"layers.\1.ff.0."),
    (r"layers\.(\d+)\.1\.1\.", r"layers.\1.ff.1.net.0.proj."),
    (r"layers\.(\d+)\.1\.3\.", r"layers.\1.ff.1.net.2."),
)
"""A plus adapter's names, and diffusers'; the first that fits counts."""


class IPAdapter(nn.Module):
    """What an adapter adds to a UNet: tokens of a picture, and how each cross attention reads them.

    widths: of the layers' states. cross: of the tokens.
    """

    def __init__(self, image_proj: nn.Module, widths: Sequence[int], cross: int) -> None:
        super().__init__()
        self.image_proj = image_proj
        self.to_k_ip = nn.ModuleList(nn.Linear(cross, width, bias=False) for width in widths)
        self.to_v_ip = nn.ModuleList(nn.Linear(cross, width, bias=False) for width in widths)

    @property
    def is_plus(self) -> bool:
        """Whether it reads the encoder's states, and not its one embedding."""
        return isinstance(self.image_proj, IPAdapterPlusImageProjection)

    @property
    def weight(self) -> Tensor:
        """Of its first layer, which tells dtype and device."""
        return cast(nn.Linear, self.to_k_ip[0]).weight

    def forward(self, seen: Tensor) -> Tensor:
        """What the encoder says of pictures, (B, P) or (B, places, C) -> tokens (B, T, cross)."""
        return self.image_proj(seen)


def read_ip_adapter(path: Path) -> Part:
    """The network in a file; loads no weights.

    Raises:
        ModelNotFound: there is nothing at `path`.
        CheckpointError: it is damaged, a pickle, or of a kind that is not read (FaceID, Full).
    """
    file = TensorFile(path)
    shapes, origins = file.shapes, {}
    keys = sorted((key for key in file if key.endswith(".to_k_ip.weight")), key=_place)
    for number, key in enumerate(keys):
        for kind in ("to_k_ip", "to_v_ip"):
            origins[f"{kind}.{number}.weight"] = Origin(key.replace("to_k_ip", kind))
    plain, plus = f"{PROJECTION}proj.weight" in file, f"{PROJECTION}latents" in file
    if not keys or plain == plus:
        raise CheckpointError(f"{path.name} is no plain IP-Adapter and no plus: use one of these.")
    widths, cross = [shapes[key][0] for key in keys], shapes[keys[0]][1]
    for key in file:
        if key.startswith(PROJECTION):
            origins |= _projection(key, plus)

    def make() -> IPAdapter:
        if plain:
            rows, width = shapes[f"{PROJECTION}proj.weight"]
            return IPAdapter(ImageProjection(width, cross, rows // cross), widths, cross)
        _, queries, hidden = shapes[f"{PROJECTION}latents"]
        names = {match[1] for key in shapes if (match := re.match(rf"{PROJECTION}layers\.(\d+)\.", key))}
        projection = IPAdapterPlusImageProjection(
            embed_dims=shapes[f"{PROJECTION}proj_in.weight"][1],
            output_dims=shapes[f"{PROJECTION}proj_out.weight"][0],
            hidden_dims=hidden,
            depth=len(names),
            dim_head=HEAD,
            heads=shapes[f"{PROJECTION}layers.0.0.to_q.weight"][0] // HEAD,
            num_queries=queries,
        )
        return IPAdapter(projection, widths, cross)

    return Part(TITLE, TITLE, make, Weights({name: (file, origin) for name, origin in origins.items()}))


def _projection(key: str, plus: bool) -> dict[str, Origin]:
    """Where a tensor of the file goes; keys and values lie together in a plus adapter."""
    name = key.removeprefix(PROJECTION)
    if not plus:
        return {PROJECTION + re.sub("^proj", "image_embeds", name): Origin(key)}
    for theirs, ours in PLUS:
        renamed, found = re.subn("^" + theirs, ours, name)
        if found:
            name = renamed
            break
    if "to_kv" not in name:
        return {PROJECTION + name: Origin(key)}
    return {PROJECTION + name.replace("to_kv", f"to_{one}"): Origin(key, half(n)) for n, one in enumerate("kv")}


def _place(key: str) -> int:
    number = key.removeprefix("ip_adapter.").partition(".")[0]
    return int(number) if number.isdecimal() else 0


def read_image_encoder(path: Path) -> Part:
    """CLIP's image encoder in a folder as transformers writes it; loads no weights. Raises as `read_ip_adapter`."""
    config = read_config(path)
    known = {field.name: config[field.name] for field in fields(VisionConfig) if field.name in config}
    weights = {
        key.removeprefix("vision_model."): (file, Origin(key))
        for file in weight_files(path, ("model",))
        for key in file
    }
    return Part(ENCODER, ENCODER, lambda: VisionEncoder(VisionConfig(**known)), Weights(weights))
