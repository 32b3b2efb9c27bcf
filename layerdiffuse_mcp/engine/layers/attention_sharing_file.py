"""What an attention-sharing file (SD 1.5) holds: its networks, their names and shapes, and how a file is read.

    model = SharingModel.read("layer_sd15_fg2bg.safetensors", unet)
    model = SharingModel(unet, frames=1, rank=8, control=False)      # a new one, to be trained

The state dict is named as the released files are: `hookers.layers.N...`, N counting the base's attention layers as
`attention_places` does, and `kwargs_encoder...`. How the networks work together is told in `sharing.py`.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, cast

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from layerdiffuse_mcp.engine.device.cancellation import check
from layerdiffuse_mcp.engine.weights.empty import without_weights
from layerdiffuse_mcp.engine.weights.tensor_file import TensorFile
from layerdiffuse_mcp.errors import LayerFileError
from layerdiffuse_mcp.hub.identify import identify

CONTROL_WIDTH = 256  # of the released files
# (part of that width, stride) of the control encoder's convolutions: picture -> 1/8, 1/16, 1/32, 1/64
CONTROL_BLOCKS: tuple[tuple[tuple[int, int], ...], ...] = (
    ((8, 1), (8, 1), (4, 2), (4, 1), (2, 2), (2, 1), (1, 2), (1, 1)),
    *(((1, 2), (1, 1)),) * 3,
)
CONTROL_INPUT = re.compile(r"hookers\.layers\.\d+\.control_convs\.\d+\.0\.weight")
NORM_EPS = 1e-6
PROJECTIONS = {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"}  # by the files' names: the base's layers


class LowRankChange(nn.Module):
    """up @ down, added to the weight of a projection."""

    def __init__(self, features_in: int, features_out: int, rank: int):
        super().__init__()
        self.down = nn.Linear(features_in, rank, bias=False)
        self.up = nn.Linear(rank, features_out, bias=False)


class SharedAttention(nn.Module):
    """What a file holds for one attention layer of the base."""

    def __init__(self, base: Attention, frames: int, rank: int, control_width: int):
        super().__init__()
        self.frames = frames
        for name, linear in projections(base).items():
            changes = [LowRankChange(linear.in_features, linear.out_features, rank) for _ in range(frames)]
            self.add_module(f"to_{name}_lora", nn.ModuleList(changes))
        width = projections(base)["k"].out_features
        self.temporal_i = nn.Linear(width, width)
        self.temporal_n = nn.LayerNorm(width, eps=NORM_EPS)
        self.temporal_q = nn.Linear(width, width)
        self.temporal_k = nn.Linear(width, width)
        self.temporal_v = nn.Linear(width, width)
        self.temporal_o = nn.Linear(width, width)
        if control_width:
            self.control_convs = nn.ModuleList(
                nn.Sequential(
                    nn.Conv2d(control_width, control_width, 3, padding=1),
                    nn.SiLU(),
                    nn.Conv2d(control_width, width, 1),
                )
                for _ in range(frames)
            )

    def merged(self, name: str, base: Tensor) -> Tensor:
        """The base's weight (out, in) of projection `name` for all frames (F, out, in), summed in float32."""
        changes = cast(nn.ModuleList, self.get_submodule(f"to_{name}_lora"))
        up = torch.stack([cast(LowRankChange, change).up.weight for change in changes]).float()
        down = torch.stack([cast(LowRankChange, change).down.weight for change in changes]).float()
        weight = base.float().expand(self.frames, -1, -1)
        return torch.baddbmm(weight, up, down).to(base.dtype)

    def between_frames(self) -> list[tuple[Tensor, Tensor]]:
        """All that comes between the norm and the attention over the frames as affine maps: weight and bias of each.

        What lies behind each other without a nonlinearity is multiplied together, in float32. The maps give query, key
        and value of states whose mean is 0 and variance 1. One frame attends to nothing but itself, so there is one map
        then, which gives the attention's whole output.
        """
        norm, entry = self.temporal_n, self.temporal_i.weight.float()
        first = entry * norm.weight.float(), entry @ norm.bias.float() + self.temporal_i.bias.float()
        if self.frames == 1:
            maps = [_after(self.temporal_o, *_after(self.temporal_v, *first))]
        else:
            maps = [_after(linear, *first) for linear in (self.temporal_q, self.temporal_k, self.temporal_v)]
        dtype = norm.weight.dtype
        return [(weight.to(dtype), bias.to(dtype)) for weight, bias in maps]

    def control(self, feature: Tensor) -> Tensor:
        """What `feature` (N, control width, h, w) of the control picture adds to each frame: (F, N, h * w, width)."""
        return torch.stack([convs(feature).flatten(2).transpose(1, 2) for convs in self.control_convs])


class ControlEncoder(nn.Module):
    """A picture (N, 3, H, W) in -1..1 -> features (N, width, H / 8 / 2^level, ...) for the UNet's four levels."""

    def __init__(self, width: int):
        super().__init__()
        channels = 3
        for index, block in enumerate(CONTROL_BLOCKS):
            layers: list[nn.Module] = []
            for part, stride in block:
                layers += [nn.Conv2d(channels, width // part, 3, padding=1, stride=stride), nn.SiLU()]
                channels = width // part
            self.add_module(f"blocks_{index}", nn.Sequential(*layers))

    def forward(self, picture: Tensor) -> list[Tensor]:
        """The features of each level, finest first."""
        features: list[Tensor] = []
        for block in self.children():
            picture = block(picture)
            features.append(picture)
        return features


class SharingModel(nn.Module):
    """A layer model for a base `unet`, its state dict named as the released files are. Holds no part of the base.

    frames: pictures that share attention, 1 to 3; control: whether a picture steers it; rank of the low-rank changes.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        frames: int,
        rank: int,
        control: bool,
        control_width: int = CONTROL_WIDTH,
    ):
        super().__init__()
        self.frames = frames
        self.hookers = nn.Module()
        width = control_width if control else 0
        layers = [SharedAttention(place.attention, frames, rank, width) for place in attention_places(unet)]
        self.hookers.layers = nn.ModuleList(layers)
        self.kwargs_encoder = ControlEncoder(width) if control else None

    @property
    def layers(self) -> list[SharedAttention]:
        """One for each of `attention_places`, in order."""
        return list(cast(Any, self.hookers.layers))

    @property
    def has_control(self) -> bool:
        """Whether a control picture is needed."""
        return self.kwargs_encoder is not None

    @classmethod
    def read(cls, path: str | os.PathLike[str], unet: UNet2DConditionModel) -> "SharingModel":
        """The model of a file, moved to the UNet's device and dtype. Frames, control and rank are the file's own.

        Raises `LayerFileError` when the file is of another kind, does not fit the UNet, lacks a key, has one too many
        or holds NaN; up to five keys are named.
        """
        file = TensorFile(path, LayerFileError)
        model = cls.from_tensors(file, unet, file.path.name)
        file.require_finite()
        return model

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], unet: UNet2DConditionModel, name: str = "The layer file"
    ) -> "SharingModel":
        """The model of a file's `tensors`, as `read` does; `name` stands in errors."""
        frames, rank, control_width = _traits(tensors, unet, name)
        with without_weights():
            model = cls(unet, frames, rank, control_width > 0, control_width)
        wanted = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
        found = _shapes(tensors)
        problems = {
            "lacks": [key for key in wanted if key not in found],
            "has keys that have no place in the network:": [key for key in found if key not in wanted],
            "does not fit this base in": [key for key in wanted if key in found and found[key] != wanted[key]],
        }
        for problem, keys in problems.items():
            if keys:
                raise LayerFileError(
                    f"{name} (it looks like {identify(found).title}) {problem} {_some(keys)}; "
                    "fetch the file again, or use it with the SD 1.5 base it was made for."
                )
        device, dtype = unet.device, unet.dtype  # diffusers walks the whole network for each of the two
        state: dict[str, Tensor] = {}
        for key in wanted:
            check()
            state[key] = tensors[key].to(device, dtype)
        model.load_state_dict(state, assign=True)
        return model.requires_grad_(False).eval()


@dataclass(frozen=True)
class Place:
    """An attention layer of the base: its name, the module, and its level (0 is the latent's own size)."""

    name: str
    attention: Attention
    level: int


def attention_places(unet: UNet2DConditionModel) -> list[Place]:
    """The attention layers in the order in which the files number them: down, up, middle; attn1 before attn2."""
    deepest = len(unet.config["block_out_channels"]) - 1
    found: list[tuple[tuple[int, ...], Place]] = []
    for name, module in unet.named_modules():
        if isinstance(module, Attention):
            side = name.split(".", 1)[0]
            numbers = tuple(map(int, re.findall(r"\d+", name)))
            level = {"down_blocks": numbers[0], "up_blocks": deepest - numbers[0], "mid_block": deepest}[side]
            order = ("down_blocks", "up_blocks", "mid_block").index(side)
            found.append(((order, *numbers), Place(name, module, level)))
    return [place for _, place in sorted(found, key=itemgetter(0))]


def projections(attention: Attention) -> dict[str, nn.Linear]:
    """The linear layers that the files change, by the files' names for them."""
    return {name: cast(nn.Linear, attention.get_submodule(layer)) for name, layer in PROJECTIONS.items()}


def _after(linear: nn.Linear, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """`linear` behind the affine map of `weight` (out, in) and `bias` (out), as one such map."""
    following = linear.weight.float()
    return following @ weight, following @ bias + linear.bias.float()


def _traits(tensors: Mapping[str, Tensor], unet: UNet2DConditionModel, name: str) -> tuple[int, int, int]:
    """Frames, rank and the width of the control encoder (0 when there is none), as the keys and shapes say."""
    found = [int(match[1]) for key in tensors if (match := re.match(r"hookers\.layers\.\d+\.to_q_lora\.(\d+)\.", key))]
    down = next((tensor for key, tensor in tensors.items() if key.endswith("_lora.0.down.weight")), None)
    if not found or down is None:
        shapes = _shapes(tensors)
        raise LayerFileError(
            f"{name} is {identify(shapes).title}, not an SD 1.5 layer file; its keys begin with {_some(list(shapes))}. "
            "Use one of the layer_sd15_* files."
        )
    if unet.config["addition_embed_type"] is not None:
        raise LayerFileError(
            f"{name} is for SD 1.5 bases, and this base is SDXL; use a layer_xl_* file or another base."
        )
    control = next((tensor for key, tensor in tensors.items() if CONTROL_INPUT.match(key)), None)
    return max(found) + 1, down.shape[0], 0 if control is None else control.shape[1]


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    if isinstance(tensors, TensorFile):  # its header has them
        return tensors.shapes
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


def _some(keys: Sequence[str]) -> str:
    return ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")
