"""Base models: a single-file LDM checkpoint or a diffusers folder -> networks, with no hub access.

    checkpoint = read_checkpoint("juggernautXL_v6.safetensors")
    checkpoint.spec.title, checkpoint.native_size    # "SDXL", 1024
    unet = checkpoint.unet()                         # weights are views of the memory-mapped file
    unet = checkpoint.unet(torch.float16, "cuda")    # converted and moved, a tensor at a time

Networks are made on the meta device and filled with `assign=True`. What shapes do not tell (heads, norm groups, native
size, the latent's scale) is the family's, unless the header's metadata key `layerdiffuse_mcp` states it, as JSON:

    {"name": "pocket", "native_size": 128, "prediction": "epsilon", "unet": {"attention_head_dim": [2, 3, 3, 2]},
     "vae": {"norm_num_groups": 16, "scaling_factor": 0.93}, "text_encoder": {"num_attention_heads": 4},
     "advice": {"guidance_scale": 4}}

`Weights` stays with the checkpoint: patches restore a base from it bit for bit instead of keeping a copy.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from layerdiffuse_mcp.engine.text.clip import TextEncoder
from layerdiffuse_mcp.engine.weights.empty import without_weights
from layerdiffuse_mcp.engine.weights.ldm_names import Origin
from layerdiffuse_mcp.engine.weights.tensor_file import TensorFile, is_finite
from layerdiffuse_mcp.errors import CheckpointError
from layerdiffuse_mcp.families.spec import FamilySpec, LatentFormat


class Weights(Mapping[str, Tensor]):
    """One network's weights on disk, by the network's own parameter names (text encoders: without `text_model.`).

    `weights[key]` is a view of the mapped file; `read` gives the very bits that the network was loaded with.
    """

    def __init__(self, origins: Mapping[str, tuple[Mapping[str, Tensor], Origin]]):
        self._origins = dict(origins)

    @property
    def files(self) -> set[Path]:
        """The files that they lie in, links followed."""
        sources = (source for source, _ in self._origins.values())
        return {source.path.resolve() for source in sources if isinstance(source, TensorFile)}

    def __iter__(self) -> Iterator[str]:
        return iter(self._origins)

    def __len__(self) -> int:
        return len(self._origins)

    def __contains__(self, key: object) -> bool:
        return key in self._origins

    def __getitem__(self, key: str) -> Tensor:
        source, origin = self._origins[key]
        return origin.transform(source[origin.key])

    def read(self, key: str, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> Tensor:
        """The weight in `dtype` (the file's unless given) on `device`. A copy only where one is needed."""
        source, origin = self._origins[key]
        if isinstance(source, TensorFile):
            stored = source.dtype(origin.key)
            if dtype not in (None, stored) or torch.device(device).type != "cpu":
                # through memory of its own: pages of the map would stay resident beside the result
                return origin.transform(source.read(origin.key)).to(device, dtype or stored)
        return self[key].to(device, dtype)


@dataclass(frozen=True)
class Part:
    """One network of a checkpoint: how to make it and where its weights are. title: what errors call it."""

    name: str
    title: str
    make: Callable[[], nn.Module]
    """Makes the network without weights; called under the meta device."""
    weights: Weights

    def empty(self, where: str) -> Any:
        """The network without weights. `where` names the file in errors. Raises `CheckpointError`."""
        try:
            with without_weights():
                return self.make()
        except (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError) as reason:  # as the library checks
            raise CheckpointError(
                f"{where}: no {self.title} can be made from what the file's header says ({reason}); "
                "the file is damaged or of a kind that is not known here: fetch it again or use another base."
            ) from reason

    def build(self, dtype: torch.dtype | None, device: str | torch.device, where: str) -> nn.Module:
        """The network, filled; otherwise as `empty`."""
        module: nn.Module = self.empty(where)
        second = _second_names(module)
        wanted = {parameter_key(name): name for name in module.state_dict() if name not in second}
        missing = [name for key, name in wanted.items() if key not in self.weights]
        if missing:
            raise CheckpointError(
                f"{where} lacks {len(missing)} weights of its {self.title} ({_some(missing)}); "
                "the file is incomplete: fetch it again or use another base."
            )
        state: dict[str, Tensor] = {}
        for key, name in wanted.items():
            tensor = self.weights.read(key, dtype, device)
            if not is_finite(tensor):
                raise CheckpointError(
                    f"{where} holds values that are not numbers (NaN or infinity) in {name}; "
                    "the file is damaged, or its numbers do not fit the dtype asked for: use another file or dtype."
                )
            state[name] = nn.Parameter(tensor, requires_grad=False) if name in second.values() else tensor
        state |= {name: state[first] for name, first in second.items()}
        try:
            module.load_state_dict(state, assign=True)
        except RuntimeError as reason:
            detail = " ".join(str(reason).split())[:300]
            raise CheckpointError(f"{where}: the {self.title} has weights of another shape: {detail}") from reason
        return module.requires_grad_(False).eval()


@dataclass(frozen=True)
class Checkpoint:
    """A base model on disk: what it is, and its networks when asked for. Holds files open, no weights."""

    path: Path
    spec: FamilySpec
    prediction: str
    """A key of `sampling.prediction.PREDICTIONS`."""
    zero_terminal_snr: bool
    """The noise schedule ends at pure noise (sigma rescaled); goes with v-prediction."""
    native_size: int
    """Pixels a side of the pictures it was trained on."""
    latent: LatentFormat
    """The family's, with the base's own scale and colours where its header states them."""
    parts: Mapping[str, Part]
    name: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The header's `layerdiffuse_mcp` entry, whole."""
    vae_fits_float16: bool = False
    """The VAE does not overflow in float16, as some families' do."""

    @property
    def family(self) -> str:
        """The family's id."""
        return self.spec.id

    @property
    def missing(self) -> tuple[str, ...]:
        """The networks that a base of this family needs and this file does not bring."""
        return tuple(name for name in self.spec.names() if name not in self.parts)

    def unet(self, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> UNet2DConditionModel:
        """The denoiser. Raises `CheckpointError`; so do the other networks."""
        return self.network("unet", dtype, device)

    def vae(self, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> AutoencoderKL:
        """The autoencoder of pictures."""
        return self.network("vae", dtype, device)

    def text_encoders(
        self, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
    ) -> tuple[TextEncoder, ...]:
        """SD 1.5: one CLIP; SDXL: two, of which the second has a projection."""
        return tuple(self.network(name, dtype, device) for name in self.spec.names("text"))

    def network(self, name: str, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> Any:
        """Any of the networks, by name. Raises `CheckpointError`."""
        if name not in self.parts:
            title = self.spec.component(name).title
            raise CheckpointError(
                f"{self.path.name} has no {title}, only {_list(part.title for part in self.parts.values())}; "
                f"use a complete {self.spec.title} base or add a separate {title} file."
            )
        return self.parts[name].build(dtype, device, self.path.name)


def _second_names(module: nn.Module) -> dict[str, str]:
    """Of weights that a network has under several names: each further one, and the first, which files have."""
    first: dict[nn.Parameter, str] = {}
    named = {name: first.setdefault(weight, name) for name, weight in module.named_parameters(remove_duplicate=False)}
    return {name: own for name, own in named.items() if name != own}


def parameter_key(name: str) -> str:
    """A parameter's name as `Weights` has it: files put `text_model.` before some, by their writer's version."""
    return name.removeprefix("text_model.")


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _list(names: Iterable[str]) -> str:
    return " and ".join(names)
