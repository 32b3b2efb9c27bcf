"""User LoRAs: kohya's and diffusers' key layouts, LoCon and full differences, for UNet and text encoders.

    lora = read_lora("watercolour.safetensors")
    patches = lora.patches({"unet": unet, "text_encoder": encoder}, weight=0.8)
    stacks["unet"].set(patches["unet"], layer_patch)

A layout is a way to spell where a tensor belongs and what it is; both are rows of tables here. Module names are
compared with "." and "_" taken as the same, so `lora_unet_input_blocks_4_1_...`,
`unet.down_blocks.1.attentions.0....` and `diffusion_model.input_blocks.4.1....` find the same module. W += weight *
alpha / rank * up @ down, as in A1111; without an alpha in the file, alpha is the rank.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from layerdiffuse_mcp.engine.weights.checkpoint import parameter_key
from layerdiffuse_mcp.engine.weights.ldm_names import unet_modules
from layerdiffuse_mcp.engine.weights.patcher import Full, LowRank, Offset, Patch, misfits
from layerdiffuse_mcp.engine.weights.tensor_file import TensorFile
from layerdiffuse_mcp.errors import LayerFileError
from layerdiffuse_mcp.hub.identify import identify

# how a key begins -> the network it is for; the first that fits wins, and a key without any is the UNet's
PREFIXES: tuple[tuple[str, str], ...] = (
    ("lora_unet_", "unet"),
    ("lora_te1_", "text_encoder"),
    ("lora_te2_", "text_encoder_2"),
    ("lora_te_", "text_encoder"),
    ("text_encoder_2.", "text_encoder_2"),
    ("text_encoder.", "text_encoder"),
    ("unet.", "unet"),
    ("transformer.", "transformer"),
    ("model.diffusion_model.", "unet"),
    ("diffusion_model.", "unet"),
)
# how a key ends -> what the tensor is
ROLES: tuple[tuple[str, str], ...] = (
    (r"(\.lora_up|\.lora_B(\.\w+)?|\.lora\.up|_lora\.up|\.lora_linear_layer\.up)\.weight", "up"),
    (r"(\.lora_down|\.lora_A(\.\w+)?|\.lora\.down|_lora\.down|\.lora_linear_layer\.down)\.weight", "down"),
    (r"\.lora_mid\.weight", "mid"),
    (r"(\.|_lora\.)alpha", "alpha"),
    (r"\.(diff|w_norm)", "weight"),
    (r"\.(diff_b|b_norm)", "bias"),
)
ENDING = re.compile("(?:" + "|".join(f"(?P<{role}>{pattern})" for pattern, role in ROLES) + ")$")
UNSUPPORTED = {
    "hada_w1": "LoHa",
    "lokr_w": "LoKr",
    "dora_scale": "DoRA",
    "oft_": "OFT",
    "ia3": "IA3",
    ".on_input": "IA3",
}


@dataclass(frozen=True)
class Lora:
    """A LoRA file, taken apart: by network and module (as spelled, with "_" for "."), its tensors by role."""

    name: str
    modules: Mapping[str, Mapping[str, Mapping[str, Tensor]]]
    unreadable: tuple[str, ...]
    """Keys of no known layout; a file may bring a few (an embedding, say)."""
    title: str

    def patches(
        self, networks: Mapping[str, nn.Module], weight: float = 1.0, text_weight: float | None = None
    ) -> dict[str, Patch]:
        """A patch for each of `networks`: the UNet's at `weight`, the text encoders' at `text_weight` (or `weight`).

        Raises `LayerFileError` when a tensor does not fit its module, when one that is for a given network finds no
        module there, or when nothing is for any of them; up to five keys are named.
        """
        found: dict[str, Patch] = {}
        homeless: list[str] = []
        for part, network in networks.items():
            offsets, lost = self.offsets(part, network)
            strength = weight if part == "unet" or text_weight is None else text_weight
            found[part] = Patch(self.name, offsets, strength)
            homeless += lost or misfits(found[part], network)
        if homeless or not any(patch.offsets for patch in found.values()):
            what = _some(homeless or self.unreadable) or "all of it"
            raise LayerFileError(
                f"{self.name} (it looks like {self.title}) does not fit this base: {what} found no place. "
                "Use a LoRA of the base's own family, in kohya's or diffusers' layout."
            )
        return found

    def offsets(self, part: str, network: nn.Module) -> tuple[dict[str, tuple[Offset, ...]], list[str]]:
        """What this file adds to `network`, by parameter; and the modules that the network does not have."""
        names = _module_names(network)
        offsets: dict[str, tuple[Offset, ...]] = {}
        homeless: list[str] = []
        for spelled, tensors in self.modules.get(part, {}).items():
            module = names.get(spelled) or names.get(f"{spelled}_0")  # attention processors say to_out for to_out.0
            if module is None or ("up" in tensors) != ("down" in tensors):
                homeless.append(spelled)
                continue
            for kind in ("weight", "bias"):
                if kind in tensors:
                    offsets[f"{module}.{kind}"] = (Full(tensors[kind]),)
            if "up" in tensors:
                alpha = tensors.get("alpha")
                low_rank = LowRank(
                    tensors["up"], tensors["down"], None if alpha is None else float(alpha), tensors.get("mid")
                )
                offsets[f"{module}.weight"] = (*offsets.get(f"{module}.weight", ()), low_rank)
        return offsets, homeless


def read_lora(path: str | os.PathLike[str]) -> Lora:
    """Open a LoRA file; tensors stay in the mapped file until a patch is set.

    Raises `ModelNotFound` when there is none, `LayerFileError` when it is damaged, holds NaN, is no LoRA, or is of a
    kind that is not supported (LoHa, LoKr, DoRA, OFT, IA3).
    """
    file = TensorFile(path, LayerFileError)
    lora = parse_lora(file, file.path.stem)
    file.require_finite()
    return lora


def parse_lora(tensors: Mapping[str, Tensor], name: str) -> Lora:
    """As `read_lora`, from a file's tensors."""
    kind = identify({key: tuple(tensor.shape) for key, tensor in tensors.items()})
    unsupported = {title for mark, title in UNSUPPORTED.items() if any(mark in key for key in tensors)}
    if unsupported:
        raise LayerFileError(
            f"{name} is an adapter of type {' and '.join(sorted(unsupported))}, which is not supported; "
            "use a LoRA (also LoCon), or merge the adapter into its base."
        )
    modules: dict[str, dict[str, dict[str, Tensor]]] = {}
    unreadable: list[str] = []
    for key, tensor in tensors.items():
        ending = ENDING.search(key)
        if ending is None:
            unreadable.append(key)
            continue
        part, rest = _part(key[: ending.start()])
        spelled = rest.replace(".processor", "").replace(".", "_").removeprefix("text_model_")
        modules.setdefault(part, {}).setdefault(spelled, {})[cast(str, ending.lastgroup)] = tensor
    if not modules or len(unreadable) > len(tensors) // 2:
        raise LayerFileError(
            f"{name} is {kind.title}, not a LoRA: {_some(unreadable or list(tensors))} are no keys of one. "
            "Use a LoRA in kohya's or diffusers' layout."
        )
    return Lora(name, modules, tuple(unreadable), kind.title)


def _part(key: str) -> tuple[str, str]:
    key = key.removeprefix("base_model.model.")
    for prefix, part in PREFIXES:
        if key.startswith(prefix):
            return part, key.removeprefix(prefix)
    return "unet", key


def _module_names(network: nn.Module) -> dict[str, str]:
    """{spelling with "_" for ".": module} of everything that has a weight, in its own and in LDM names."""
    weighted = [name for name, module in network.named_modules() if isinstance(getattr(module, "weight", None), Tensor)]
    names = {parameter_key(name).replace(".", "_"): name for name in weighted}
    if "conv_in" in names:
        ldm = unet_modules(cast(Mapping[str, object], network.config))
        names |= {spelled.replace(".", "_"): name for spelled, name in ldm.items() if name in weighted}
    return names


def _some(keys: Sequence[str]) -> str:
    return ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")
