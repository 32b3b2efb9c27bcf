"""Layer models that are offsets of a base's weights (all SDXL methods), in any of the layouts in which they are shared.

    patch = read_offsets("layer_xl_transparent_attn.safetensors", unet)
    with network.patched(patch.scaled(0.6)):
        network(x, timestep, conditioning)          # base + offsets
        network.base(x, timestep, conditioning)     # the base; user LoRAs stay

Layouts: `MODEL_KEY::lora|diff::SLOT` (the released files), plain diffusers keys with full differences, LoRA in
diffusers layout. A file fits whole or not at all. With and without, the network is the same module: its touched weights
change places, so one model's memory is enough, and nothing happens while the same is asked again and again.
"""

import os
import re
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from layerdiffuse_mcp.engine.layers.conditions import ConditionPictures, encode_condition
from layerdiffuse_mcp.engine.models.components import Components
from layerdiffuse_mcp.engine.models.networks import Networks
from layerdiffuse_mcp.engine.models.stable_diffusion import StableDiffusion
from layerdiffuse_mcp.engine.types import Conditioning
from layerdiffuse_mcp.engine.weights.ldm_names import unet_key_map
from layerdiffuse_mcp.engine.weights.lora import parse_lora
from layerdiffuse_mcp.engine.weights.patcher import Full, LowRank, Offset, Patch, misfits
from layerdiffuse_mcp.engine.weights.tensor_file import TensorFile
from layerdiffuse_mcp.errors import LayerFileError
from layerdiffuse_mcp.families.spec import LayerMethod
from layerdiffuse_mcp.hub.identify import identify

SLOTS: Mapping[str, tuple[str, ...]] = {"lora": ("up", "down", "alpha", "mid"), "diff": ("difference",)}
MODEL_PREFIXES = ("model.diffusion_model.", "diffusion_model.")


def read_offsets(path: str | os.PathLike[str], unet: UNet2DConditionModel) -> Patch:
    """The offsets of a layer file for `unet`, patched or not, at strength 1.

    Raises `LayerFileError` when the file is damaged, of another kind or for another base, lacks a tensor or has one
    that finds no place; up to five keys are named.
    """
    file = TensorFile(path, LayerFileError)
    patch = offsets_from_tensors(file, unet, file.path.name)
    file.require_finite()
    return patch


def offsets_from_tensors(
    tensors: Mapping[str, Tensor], unet: UNet2DConditionModel, name: str = "The layer file"
) -> Patch:
    """As `read_offsets`, from a file's tensors, which are kept and not copied; `name` stands in errors."""
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    parameters = {key for key, _ in unet.named_parameters()}
    misplaced: list[str]
    offsets: Mapping[str, tuple[Offset, ...]]
    if any("::" in key for key in tensors):
        offsets, misplaced = _slotted(tensors, unet_key_map(unet.config), parameters)
    elif parameters.issuperset(tensors) or not _looks_like_lora(tensors):
        offsets = {key: (Full(tensor),) for key, tensor in tensors.items() if key in parameters}
        misplaced = [key for key in tensors if key not in parameters]
    else:
        lora = parse_lora(tensors, name)
        offsets, misplaced = lora.offsets("unet", unet)
    patch = Patch(name, offsets)
    problem = None
    if misplaced or not offsets:
        problem = f"has tensors that find no place in this base: {_some(misplaced or list(tensors))}"
    elif wrong := misfits(patch, unet):
        problem = f"is for a base of another size: {_some(wrong)} do not fit"
    elif absent := _absent(offsets, parameters):
        problem = f"is incomplete: it lacks {_some(absent)}"
    if problem:
        family = "SD 1.5" if unet.config["addition_embed_type"] is None else "SDXL"
        raise LayerFileError(
            f"{name} (it looks like {identify(shapes).title}; this base is {family}) {problem}. "
            "Use a layer file of the base's own family, or fetch the file again."
        )
    return patch


class WeightOffset:
    """The adapter (see `adapters.py`): a file of offsets patched in, given pictures as latents behind the noisy one.

    A file stays mapped and costs nothing. It stays patched in afterwards, so that the next run of the same method
    starts at once; the base's own weights come back, bit for bit, as soon as they are wanted.
    """

    def condition(self, model: StableDiffusion, inputs: ConditionPictures) -> Tensor:
        """The latents to be joined behind the noisy one; see `encode_condition`."""
        return encode_condition(model, inputs)

    def conditioned(self, conditioning: Conditioning, condition: Tensor) -> Conditioning:
        """With the latents behind the noisy one."""
        return replace(conditioning, concat=condition)

    @contextmanager
    def applied(
        self,
        model: StableDiffusion,
        networks: Networks,
        method: LayerMethod,
        strength: float,
        condition: Tensor | None = None,
    ) -> Generator[Networks]:
        """The networks with the method's file on them; `prompts` of frames there are none."""
        unet = networks.unet
        patch = model.components.read(method.file, lambda path: read_offsets(path, unet.unet))
        with unet.patched(patch.scaled(strength)):
            yield networks

    def numbers(self, components: Components, method: LayerMethod) -> int:
        """None: its weights take the place of the denoiser's."""
        return 0


def _slotted(
    tensors: Mapping[str, Tensor], names: Mapping[str, str], parameters: set[str]
) -> tuple[dict[str, tuple[Offset, ...]], list[str]]:
    """The offsets of `MODEL_KEY::TYPE::SLOT` tensors by parameter, and the keys that have no place."""
    groups: dict[tuple[str, str], dict[str, Tensor]] = {}
    misplaced: list[str] = []
    for key, tensor in tensors.items():
        parameter, kind, slot = _slot(key, names)
        if parameter in parameters and slot:
            groups.setdefault((parameter, kind), {})[slot] = tensor
        else:
            misplaced.append(key)
    offsets: dict[str, tuple[Offset, ...]] = {}
    for (parameter, kind), parts in groups.items():
        if kind == "diff":
            offset = Full(parts["difference"])
        elif "up" in parts and "down" in parts:
            alpha = parts.get("alpha")
            offset = LowRank(parts["up"], parts["down"], None if alpha is None else float(alpha), parts.get("mid"))
        else:
            misplaced.append(f"{parameter} ({' and '.join(parts)} alone)")
            continue
        offsets[parameter] = (*offsets.get(parameter, ()), offset)
    return offsets, misplaced


def _slot(key: str, names: Mapping[str, str]) -> tuple[str, str, str | None]:
    """(diffusers parameter or the key itself, type, slot's name or None when there is no such slot)."""
    model_key, _, rest = key.partition("::")
    kind, _, index = rest.partition("::")
    for prefix in MODEL_PREFIXES:
        model_key = model_key.removeprefix(prefix)
    slots = SLOTS.get(kind, ())
    slot = slots[int(index)] if index.isdecimal() and int(index) < len(slots) else None
    return names.get(model_key, model_key), kind, slot


def _absent(offsets: Mapping[str, object], parameters: Iterable[str]) -> list[str]:
    """Parameters without an offset whose like elsewhere have one: a released file has all of a sort or none."""
    present = {_role(name) for name in offsets}
    return [name for name in parameters if name not in offsets and _role(name) in present]


def _role(name: str) -> str:
    return re.sub(r"\d+", "#", name.replace("down_blocks", "blocks").replace("up_blocks", "blocks"))


def _looks_like_lora(tensors: Iterable[str]) -> bool:
    return any("lora" in key for key in tensors)


def _some(keys: Sequence[str]) -> str:
    return ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")
