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
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor
from torch.nn import functional as F

from layerdiffuse_mcp.engine.networks import UNetNetwork
from layerdiffuse_mcp.engine.sampling.denoiser import Conditioning
from layerdiffuse_mcp.engine.sharing_model import (
    PROJECTIONS,
    SharedAttention,
    SharingModel,
    attention_places,
    projections,
)
from layerdiffuse_mcp.errors import InvalidRequest


class SharedNetwork:
    """A base with a sharing model on it, for one run: a `Network` with and without the model.

    control: picture (1 or N, 3, H, W) in 0..1, N images, H and W eight times the latent's, if the model wants one.
    prompts: text embeddings (1 or N, T, C) by frame, None where the common prompt stands; fewer than frames is fine.
    Raises `InvalidRequest` when the control picture is missing or not wanted, or prompts are more than the frames.

    weight: the base's weight of a parameter's name, where the UNet itself does not have it in place all the time.

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
        weight: Callable[[str], Tensor] | None = None,
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
        self._weight: Callable[[str], Tensor] = weight or unet.get_parameter
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
                name: layer.merged(name, self._weight(f"{place.name}.{linear}.weight"))
                for name, linear in PROJECTIONS.items()
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
