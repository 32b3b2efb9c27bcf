"""The offsets of an SDXL layer file while they are trained: which weights a method's file changes, the base with them.

    model = OffsetModel(unet, METHODS["layer_xl_fg2ble"], rank=256)         # changes nothing yet
    noise = model(unet, x, steps, conditioning)                             # gradients reach the offsets
    save_file(model.released(model.state_dict()), "layer_xl_fg2ble.safetensors")

Files and shapes are those of the release; the weights are summed by the engine's own offsets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from diffusers import UNet2DConditionModel
from torch.func import functional_call

from layerdiffuse_mcp.engine.layers.weight_offset import offsets_from_tensors
from layerdiffuse_mcp.engine.types import Conditioning
from layerdiffuse_mcp.engine.weights.ldm_export import to_ldm
from layerdiffuse_mcp.engine.weights.ldm_names import unet_key_map
from layerdiffuse_mcp.families.spec import LayerMethod

PREFIX = "diffusion_model."
FIRST = "input_blocks.0.0.weight"  # of the first convolution, which sees the given latents too


def _projection(key: str) -> bool:
    return ".attn" in key and ".to_" in key and key.endswith(".weight")


def _beside_queries(key: str) -> bool:
    return "_embed" not in key and not any(part in key for part in (".to_q.", ".to_k.", ".to_v."))


def _outside_transformers(key: str) -> bool:
    return "_embed" not in key and "transformer_blocks" not in key


CHANGED: Mapping[str, Callable[[str], bool]] = {
    "layer_xl_transparent_attn": _projection,
    "layer_xl_transparent_conv": _beside_queries,
    "layer_xl_bgble2fg": _beside_queries,
    "layer_xl_fg2ble": _outside_transformers,
    "layer_xl_bg2ble": _outside_transformers,
    "layer_xl_fgble2bg": _outside_transformers,
}
"""Which weights, by LDM key, each method's file has offsets for; low-rank ones for the first, else whole."""


class OffsetModel(torch.nn.Module):
    """A method's offsets for the weights of `unet`, zero at first."""

    def __init__(self, unet: UNet2DConditionModel, method: LayerMethod, rank: int) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.keys: list[str] = []
        tensors: list[torch.Tensor] = []
        for key, weight in to_ldm(unet.state_dict(), unet_key_map(unet.config)).items():
            if not CHANGED[method.id](key):
                continue
            if CHANGED[method.id] is _projection:
                self.keys += [f"{PREFIX}{key}::lora::{slot}" for slot in (0, 1)]
                tensors += [torch.zeros(weight.shape[0], rank), torch.randn(rank, weight.shape[1]) / rank]
            else:
                wider = 4 * len(method.inputs) if key == FIRST else 0
                self.keys.append(f"{PREFIX}{key}::diff::0")
                tensors.append(
                    torch.zeros(weight.shape[0], *(n + wider * (d == 0) for d, n in enumerate(weight.shape[1:])))
                )
        self.tensors = torch.nn.ParameterList(tensors)
        self.patch = offsets_from_tensors(dict(zip(self.keys, self.tensors, strict=True)), unet, method.id)

    def forward(
        self, unet: UNet2DConditionModel, x: torch.Tensor, steps: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        """The noise that the base with the offsets predicts; arguments as `sampling.denoiser.Network`."""
        weights = {}
        for name, offsets in self.patch.offsets.items():
            base = unet.get_parameter(name)
            total = base.float().clone()
            for offset in offsets:
                total = offset.add_to(total, 1.0)
            weights[name] = total.to(base.dtype)
        given = {"encoder_hidden_states": conditioning.context, "added_cond_kwargs": {"vector": conditioning.vector}}
        return functional_call(unet, weights, (x, steps), given).sample

    def released(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tensors of a state dict of this model under the keys of the release."""
        return {key: state[f"tensors.{index}"] for index, key in enumerate(self.keys)}

    def start_from(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take over the tensors of a file of this method and rank; KeyError or RuntimeError where it is another."""
        with torch.no_grad():
            for key, parameter in zip(self.keys, self.tensors, strict=True):
                parameter.copy_(tensors[key])
