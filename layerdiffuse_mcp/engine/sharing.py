"""Attention sharing (SD 1.5): several pictures of one scene, drawn together as the frames of a batch.

    model = SharingModel.read("layer_sd15_fg2bg.safetensors", unet)
    run = SharedNetwork(unet, model, control=picture)        # merges weights, computes control features: once a run
    run.network(x, timestep, conditioning)                   # rows are (image, frame), the frame running fastest
    run.base_network(x, timestep, conditioning)              # the untouched base

Every attention layer of the UNet gets: for each frame its own low-rank change of q, k, v and out; after that an
attention over the frames at each place (`temporal_*`); and, in files with a control picture, that picture's features
added to what comes in (`control_convs`, fed by one `kwargs_encoder`). Prompts may be given for each frame; they
replace the text of conditional rows only. The base's weights are read and never written: what is set on it are
attention processors, and `remove` puts the former ones back.

Source: sd-forge-layerdiffuse, `lib_layerdiffusion/attention_sharing.py`; names and shapes are those of its files.
"""

import math
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
from torch.nn import functional as F

from layerdiffuse_mcp.engine.identify import identify
from layerdiffuse_mcp.engine.networks import UNetNetwork
from layerdiffuse_mcp.engine.sampling.denoiser import Conditioning
from layerdiffuse_mcp.engine.tensorfile import TensorFile
from layerdiffuse_mcp.errors import InvalidRequest, LayerFileError

CONTROL_WIDTH = 256  # of the released files
# (part of that width, stride) of the control encoder's convolutions: picture -> 1/8, 1/16, 1/32, 1/64
CONTROL_BLOCKS: tuple[tuple[tuple[int, int], ...], ...] = (
    ((8, 1), (8, 1), (4, 2), (4, 1), (2, 2), (2, 1), (1, 2), (1, 1)),
    *(((1, 2), (1, 1)),) * 3,
)
CONTROL_INPUT = re.compile(r"hookers\.layers\.\d+\.control_convs\.\d+\.0\.weight")
PROJECTIONS = ("q", "k", "v", "out")


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
        self.temporal_n = nn.LayerNorm(width, eps=1e-6)
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

    def merged(self, name: str, base: nn.Linear) -> Tensor:
        """The weights of projection `name` for all frames (F, out, in), in the base's dtype; summed in float32."""
        changes = cast(nn.ModuleList, self.get_submodule(f"to_{name}_lora"))
        up = torch.stack([cast(LowRankChange, change).up.weight for change in changes]).float()
        down = torch.stack([cast(LowRankChange, change).down.weight for change in changes]).float()
        weight = base.weight.float().expand(self.frames, -1, -1)
        return torch.baddbmm(weight, up, down).to(base.weight.dtype)

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
        with torch.device("meta"):
            model = cls(unet, frames, rank, control_width > 0, control_width)
        wanted = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
        given = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
        problems = {
            "lacks": [key for key in wanted if key not in given],
            "has keys that have no place in the network:": [key for key in given if key not in wanted],
            "does not fit this base in": [key for key in wanted if key in given and given[key] != wanted[key]],
        }
        for problem, keys in problems.items():
            if keys:
                raise LayerFileError(
                    f"{name} (it looks like {identify(given).title}) {problem} {_some(keys)}; "
                    "fetch the file again, or use it with the SD 1.5 base it was made for."
                )
        device, dtype = unet.device, unet.dtype  # diffusers walks the whole network for each of the two
        state = {key: tensors[key].to(device, dtype) for key in wanted}
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
    out = cast(nn.ModuleList, attention.to_out)[0]
    return dict(zip(PROJECTIONS, cast(Any, (attention.to_q, attention.to_k, attention.to_v, out)), strict=True))


class SharedNetwork:
    """A base with a sharing model on it, for one run: a `Network` with and without the model.

    control: picture (1 or N, 3, H, W) in 0..1, N images, H and W eight times the latent's, if the model wants one.
    prompts: text embeddings (1 or N, T, C) by frame, None where the common prompt stands; fewer than frames is fine.
    Raises `InvalidRequest` when the control picture is missing or not wanted, or prompts are more than the frames.

    Weights are merged and control features computed here, once. With `trainable=True` that happens in each call
    instead, so that gradients reach the model. As a context manager it calls `remove` at the end.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        model: SharingModel,
        control: Tensor | None = None,
        prompts: Sequence[Tensor | None] = (),
        trainable: bool = False,
    ):
        if model.has_control and control is None:
            raise InvalidRequest("This layer model draws to a given picture, and none was given; give the picture.")
        if control is not None and not model.has_control:
            raise InvalidRequest("This layer model takes no picture; leave it out, or choose a method that takes one.")
        if len(prompts) > model.frames:
            raise InvalidRequest(
                f"{len(prompts)} prompts for {model.frames} frames; give at most one prompt a frame of the method."
            )
        self._network = UNetNetwork(unet)
        self._model = model
        self._trainable = trainable
        self._picture = control
        self._call = Call(model.frames, tuple(prompts))
        self._places = attention_places(unet)
        self._former = [place.attention.processor for place in self._places]
        self._processors = [SharedProcessor(layer, self._call) for layer in model.layers]
        self._on = False
        if not trainable:
            with torch.no_grad():
                self._prepare()

    def network(self, x: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        """As `sampling.denoiser.Network`; rows are (image, frame), the frame running fastest."""
        if len(x) % self._model.frames:
            raise InvalidRequest(
                f"This layer model draws {self._model.frames} pictures at a time, and {len(x)} cannot be shared out so."
            )
        self._put(True)
        self._call.positive = conditioning.positive
        if self._trainable:
            self._prepare()
        return self._network(x, timestep, conditioning)

    def base_network(self, x: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        """The base without the model, as `sampling.denoiser.Network`."""
        self._put(False)
        return self._network(x, timestep, conditioning)

    def remove(self) -> None:
        """Put the base's own attention back."""
        self._put(False)

    def __enter__(self) -> "SharedNetwork":
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _put(self, on: bool) -> None:
        if on != self._on:
            for place, ours, former in zip(self._places, self._processors, self._former, strict=True):
                place.attention.set_processor(cast(Any, ours if on else former))
            self._on = on

    def _prepare(self) -> None:
        features = self._features()
        for place, processor in zip(self._places, self._processors, strict=True):
            layer = processor.layer
            processor.weights = {
                name: layer.merged(name, linear) for name, linear in projections(place.attention).items()
            }
            processor.control = layer.control(features[place.level]) if features else None

    def _features(self) -> list[Tensor]:
        encoder = self._model.kwargs_encoder
        if encoder is None or self._picture is None:
            return []
        first = next(encoder.parameters())
        return encoder(self._picture.to(first) * 2 - 1)


class Call:
    """What all attention layers know of the pass they are in."""

    def __init__(self, frames: int, prompts: tuple[Tensor | None, ...]):
        self.positive: Tensor | None = None
        self._frames = frames
        self._prompts = [(f, prompt) for f, prompt in enumerate(prompts) if prompt is not None]
        self._made_for: tuple[Tensor, Tensor | None] | None = None
        self._made: Tensor | None = None

    def texts(self, context: Tensor) -> Tensor:
        """context (B, T, C) -> (F, B / F, T', C) with the frames' own prompts in the conditional rows.

        T' is T, or where prompts are of other lengths the least length that all can be repeated to. Made once for all
        layers of a pass, and for all passes that bring the same tensor.
        """
        made_for = self._made_for
        if self._made is None or made_for is None or made_for[0] is not context or made_for[1] is not self.positive:
            self._made, self._made_for = self._framed(context), (context, self.positive)
        return self._made

    def _framed(self, context: Tensor) -> Tensor:
        framed = by_frame(context, self._frames)
        if not self._prompts or self.positive is None:
            return framed
        length = math.lcm(context.shape[1], *(prompt.shape[1] for _, prompt in self._prompts))
        rows = list(framed.repeat(1, 1, length // context.shape[1], 1))
        positive = by_frame(self.positive.to(context.device), self._frames)
        for f, prompt in self._prompts:
            text = repeat_rows(prompt.to(context), len(rows[f])).repeat(1, length // prompt.shape[1], 1)
            rows[f] = torch.where(positive[f][:, None, None], text, rows[f])
        return torch.stack(rows)


class SharedProcessor:
    """A diffusers attention processor that does what `SharedAttention` holds; set up by `SharedNetwork`."""

    weights: dict[str, Tensor]
    control: Tensor | None

    def __init__(self, layer: SharedAttention, call: Call):
        self.layer = layer
        self._call = call

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """What the layer adds to its input: hidden_states (B, places, width), B = images x frames -> the same shape."""
        frames, heads = self.layer.frames, attn.heads
        shown = by_frame(hidden_states, frames)
        if self.control is not None:
            shown = shown + repeat_rows(self.control.transpose(0, 1), shown.shape[1]).transpose(0, 1)
        texts = shown if encoder_hidden_states is None else self._call.texts(encoder_hidden_states)

        bias = projections(attn)["out"].bias
        query, key, value = (
            split_heads(per_frame(states, self.weights[name]), heads)
            for name, states in (("q", shown), ("k", texts), ("v", texts))
        )
        attended = join_heads(F.scaled_dot_product_attention(query, key, value)).view_as(shown)
        shown = shown + per_frame(attended, self.weights["out"]) + bias

        shown = shown + self._between_frames(shown, heads)
        return by_row(shown) - hidden_states

    def _between_frames(self, shown: Tensor, heads: int) -> Tensor:
        """Attention over the frames at each place: (F, images, places, width) -> the same shape."""
        layer = self.layer
        states = layer.temporal_i(layer.temporal_n(shown))
        value = layer.temporal_v(states)
        if layer.frames > 1:
            query, key, value = (
                t.unflatten(-1, (heads, -1)) for t in (layer.temporal_q(states), layer.temporal_k(states), value)
            )
            likeness = torch.einsum("fbphc,gbphc->bphfg", query, key) / math.sqrt(query.shape[-1])
            value = torch.einsum("bphfg,gbphc->fbphc", likeness.softmax(-1), value).flatten(-2)
        # one frame attends to nothing but itself: the value as it is
        return layer.temporal_o(value)


def by_frame(rows: Tensor, frames: int) -> Tensor:
    """(images x frames, ...) -> (frames, images, ...)."""
    return rows.unflatten(0, (-1, frames)).transpose(0, 1)


def by_row(framed: Tensor) -> Tensor:
    """(frames, images, ...) -> (images x frames, ...)."""
    return framed.transpose(0, 1).flatten(0, 1)


def per_frame(states: Tensor, weights: Tensor) -> Tensor:
    """Each frame's states (F, N, P, in) through its own weights (F, out, in) -> (F, N, P, out)."""
    return torch.bmm(states.flatten(1, 2), weights.transpose(1, 2)).view(*states.shape[:3], -1)


def split_heads(states: Tensor, heads: int) -> Tensor:
    """(F, N, P, heads * width) -> (F * N, heads, P, width)."""
    return states.flatten(0, 1).unflatten(-1, (heads, -1)).transpose(1, 2)


def join_heads(states: Tensor) -> Tensor:
    """(F * N, heads, P, width) -> (F * N, P, heads * width)."""
    return states.transpose(1, 2).flatten(2)


def repeat_rows(tensor: Tensor, rows: int) -> Tensor:
    """`tensor` (N, ...) repeated along the first axis to `rows`, a multiple of N."""
    return tensor.repeat(rows // len(tensor), *(1,) * (tensor.ndim - 1))


def _traits(tensors: Mapping[str, Tensor], unet: UNet2DConditionModel, name: str) -> tuple[int, int, int]:
    """Frames, rank and the width of the control encoder (0 when there is none), as the keys and shapes say."""
    found = [int(match[1]) for key in tensors if (match := re.match(r"hookers\.layers\.\d+\.to_q_lora\.(\d+)\.", key))]
    down = next((tensor for key, tensor in tensors.items() if key.endswith("_lora.0.down.weight")), None)
    if not found or down is None:
        shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
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


def _some(keys: Sequence[str]) -> str:
    return ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")
