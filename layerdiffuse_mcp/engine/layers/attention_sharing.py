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
from collections.abc import Callable, Generator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor
from torch.nn import functional as F
from torch.utils.weak import WeakIdKeyDictionary

from layerdiffuse_mcp.engine.device.cancellation import check
from layerdiffuse_mcp.engine.layers.attention_sharing_file import (
    NORM_EPS,
    PROJECTIONS,
    SharedAttention,
    SharingModel,
    attention_places,
    projections,
)
from layerdiffuse_mcp.engine.layers.conditions import ConditionPictures, control_picture
from layerdiffuse_mcp.engine.models.networks import UNetNetwork
from layerdiffuse_mcp.engine.models.stable_diffusion import UNET, StableDiffusion
from layerdiffuse_mcp.engine.types import Conditioning, Network, Networks
from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.families.spec import LayerMethod


class AttentionSharing:
    """The adapter (see `adapters.py`): a sharing model on the attention layers, shown a control picture.

    A file takes memory, so one is kept at a time, and it leaves the device with the denoiser.
    """

    def condition(self, model: StableDiffusion, inputs: ConditionPictures) -> Tensor:
        """The control picture, (1, 3, H, W), 0..1: the first of the method's inputs, common to all results."""
        return control_picture(inputs.pictures[0][0], inputs.width, inputs.height, inputs.resize_mode)

    def conditioned(self, conditioning: Conditioning, condition: Tensor) -> Conditioning:
        """As it is: the picture goes to the sharing model."""
        return conditioning

    @contextmanager
    def applied(
        self,
        model: StableDiffusion,
        networks: Networks,
        method: LayerMethod,
        strength: float,
        condition: Tensor | None = None,
        prompts: Sequence[Tensor | None] = (),
    ) -> Generator[Networks]:
        """The networks with the method's file on them, which knows no strength; prompts as of `SharedNetwork`."""
        unet, stack, device = model.unet, model.components.stack(UNET), model.placement.device
        layer = model.components.read(
            method.file, lambda path: SharingModel.read(path, unet), phase="denoising", only=True
        )

        def weight(name: str) -> Tensor:
            return stack.weight(name, device)

        with SharedNetwork(unet, layer, condition, prompts, weight=weight, network=networks.layered) as shared:
            yield Networks(shared.network, shared.base_network)


class SharedNetwork:
    """A base with a sharing model on it, for one run: a `Network` with and without the model.

    control: picture (1 or N, 3, H, W) in 0..1, N images, H and W eight times the latent's, if the model wants one.
    prompts: text embeddings (1 or N, T, C) by frame, None where the common prompt stands; fewer than frames is fine.
    Raises `InvalidRequest` when the control picture is missing or not wanted, or prompts are more than the frames.

    weight: the base's weight of a parameter's name, where the UNet itself does not have it in place all the time.
    network: what asks the UNet, where that is not its plain self.

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
        network: Network | None = None,
    ):
        if model.has_control and control is None:
            raise InvalidRequest("This layer model draws to a given picture, and none was given; give the picture.")
        if control is not None and not model.has_control:
            raise InvalidRequest("This layer model takes no picture; leave it out, or choose a method that takes one.")
        if len(prompts) > model.frames:
            raise InvalidRequest(
                f"{len(prompts)} prompts for {model.frames} frames; give at most one prompt a frame of the method."
            )
        self._network = network or UNetNetwork(unet)
        self._dtype = unet.dtype
        self._model = model
        self._trainable = trainable
        self._weight: Callable[[str], Tensor] = weight or unet.get_parameter
        self._picture = control
        self._prompts = tuple(prompts)
        self._places = attention_places(unet)
        self._former = [place.attention.processor for place in self._places]
        self._processors = [SharedProcessor(layer) for layer in model.layers]
        self._on = False
        if not trainable:
            with torch.no_grad():
                self._prepare()

    def network(self, x: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        """As `types.Network`; rows are (image, frame), the frame running fastest."""
        frames = self._model.frames
        if len(x) % frames:
            raise InvalidRequest(
                f"This layer model draws {frames} pictures at a time, and {len(x)} cannot be shared out so."
            )
        self._put(True)
        if self._trainable:
            self._prepare()
        # inside, rows are (frame, image): each frame's are one block, which no layer has to gather
        texts = replace(conditioning, context=self._texts(conditioning))
        return by_row(self._network(by_frame(x, frames), by_frame(timestep, frames), texts), frames)

    def base_network(self, x: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        """The base without the model, as `types.Network`."""
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
        self._texts = Texts(self._model.frames, self._prompts, self._dtype)
        for place, processor in zip(self._places, self._processors, strict=True):
            check()
            layer = processor.layer
            merged = {
                name: layer.merged(name, self._weight(f"{place.name}.{linear}.weight"))
                for name, linear in PROJECTIONS.items()
            }
            processor.prepare(merged, layer.control(features[place.level]) if features else None, self._texts.mask)

    def _features(self) -> list[Tensor]:
        encoder = self._model.kwargs_encoder
        if encoder is None or self._picture is None:
            return []
        first = next(encoder.parameters())
        return encoder(self._picture.to(first) * 2 - 1)


class Texts:
    """The texts as the frames read them: the common ones, and the frames' own `prompts` (see `SharedNetwork`)."""

    def __init__(self, frames: int, prompts: Sequence[Tensor | None], dtype: torch.dtype):
        self._frames = frames
        self._dtype = dtype
        self._prompts = [(f, prompt) for f, prompt in enumerate(prompts) if prompt is not None]
        self._made: MutableMapping[Tensor, tuple[Tensor | None, Tensor]] = WeakIdKeyDictionary()
        self._masks: MutableMapping[Tensor, Tensor] = WeakIdKeyDictionary()

    def __call__(self, conditioning: Conditioning) -> Tensor:
        """context (B, T, C) -> (B, T', C), rows (frame, image), the frames' own prompts in the conditional rows.

        T' is the length of the longest; `mask` tells what of the others is there. All passes that bring the same
        tensors get the same tensor.
        """
        context, positive = conditioning.context, conditioning.positive
        made_for, made = self._made.get(context, (None, None))
        if made is None or made_for is not positive:
            framed, mask = self._framed(context, positive)
            made = framed.to(self._dtype)
            self._made[context] = positive, made
            if mask is not None:
                self._masks[made] = mask
        return made

    def mask(self, texts: Tensor) -> Tensor | None:
        """Which places of `texts` (B, T', C), as they come from here, hold text: (B, 1, 1, T'); None when all do.

        The reference repeats texts of different lengths to a common one, which is their least common multiple; to
        attend to a text once, and not to what fills it up, gives the same.
        """
        return self._masks.get(texts)

    def _framed(self, context: Tensor, positive: Tensor | None) -> tuple[Tensor, Tensor | None]:
        framed = by_frame(context, self._frames)
        if not self._prompts or positive is None:
            return framed, None
        lengths = [context.shape[1], *(prompt.shape[1] for _, prompt in self._prompts)]
        longest = max(lengths)
        places = torch.arange(longest, device=context.device)
        rows = list(_filled_up(framed, longest).chunk(self._frames))
        length = [torch.full((len(row),), context.shape[1], device=context.device) for row in rows]
        conditional = by_frame(positive.to(context.device), self._frames).chunk(self._frames)
        for f, prompt in self._prompts:
            text = repeat_rows(_filled_up(prompt.to(context), longest), len(rows[f]))
            rows[f] = torch.where(conditional[f][:, None, None], text, rows[f])
            length[f] = torch.where(conditional[f], prompt.shape[1], length[f])
        mask = None if min(lengths) == longest else (places < torch.cat(length)[:, None])[:, None, None]
        return torch.cat(rows), mask


class SharedProcessor:
    """A diffusers attention processor that does what `SharedAttention` holds, on rows (frame, image)."""

    def __init__(self, layer: SharedAttention):
        self.layer = layer

    def prepare(
        self,
        merged: Mapping[str, Tensor],
        control: Tensor | None,
        mask: Callable[[Tensor], Tensor | None] | None = None,
    ) -> None:
        """Take what is the same in each pass: weights (F, out, in) by projection; control (F, N, places, width).

        mask: see `Texts.mask`; None where all texts are of one length.
        """
        self._mask = mask
        self._query, self._out = merged["q"], merged["out"]
        self._key_value = torch.cat([merged["k"], merged["v"]], dim=1)
        self._between = self.layer.between_frames()
        self._control = control
        self._texts: MutableMapping[Tensor, tuple[Tensor, Tensor]] = WeakIdKeyDictionary()

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """What the layer adds to its input: hidden_states (B, places, width), B = frames x images -> the same shape."""
        shown = hidden_states
        if self._control is not None:
            images = len(shown) // self.layer.frames
            shown = shown + repeat_rows(self._control.transpose(0, 1), images).transpose(0, 1).flatten(0, 1)

        query = split_heads(per_frame(shown, self._query), attn.heads)
        key, value = self._keys_and_values(shown, encoder_hidden_states, attn.heads)
        mask = self._mask(encoder_hidden_states) if self._mask and encoder_hidden_states is not None else None
        attended = F.scaled_dot_product_attention(query, key, value, mask).transpose(1, 2).flatten(2)
        added = per_frame(attended, self._out, projections(attn)["out"].bias)
        if self._control is not None:
            added = added + (shown - hidden_states)

        return self.among_frames(hidden_states + added, attn.heads) + added

    def _keys_and_values(self, shown: Tensor, texts: Tensor | None, heads: int) -> tuple[Tensor, Tensor]:
        """Of the pictures themselves; or of the texts (B, T, C), computed once for all passes that bring them."""
        if texts is None or texts not in self._texts:
            joined = per_frame(shown if texts is None else texts, self._key_value)
            key, value = (split_heads(half, heads) for half in joined.chunk(2, dim=-1))
            if texts is None:
                return key, value
            self._texts[texts] = key, value
        return self._texts[texts]

    def among_frames(self, shown: Tensor, heads: int) -> Tensor:
        """Attention over the frames at each place: (B, places, width) -> the same shape."""
        normed = F.layer_norm(shown, shown.shape[-1:], eps=NORM_EPS)
        states = [F.linear(normed, weight, bias) for weight, bias in self._between]
        if self.layer.frames == 1:
            return states[0]
        width = shown.shape[-1] // heads
        # (images x places x heads, F, width / heads) each, without a copy
        query, key, value = (state.view(self.layer.frames, -1, width).transpose(0, 1) for state in states)
        likeness = torch.bmm(query, key.transpose(1, 2)) / math.sqrt(width)
        mixed = torch.bmm(likeness.softmax(-1), value)
        return self.layer.temporal_o(mixed.transpose(0, 1).reshape(shown.shape))


def _filled_up(texts: Tensor, length: int) -> Tensor:
    """(B, T, C) -> (B, length, C), with zeros behind."""
    return F.pad(texts, (0, 0, 0, length - texts.shape[1]))


def by_frame(rows: Tensor, frames: int) -> Tensor:
    """Rows (image, frame) -> rows (frame, image)."""
    return rows.unflatten(0, (-1, frames)).transpose(0, 1).flatten(0, 1)


def by_row(rows: Tensor, frames: int) -> Tensor:
    """Rows (frame, image) -> rows (image, frame)."""
    return rows.unflatten(0, (frames, -1)).transpose(0, 1).flatten(0, 1)


def per_frame(states: Tensor, weights: Tensor, bias: Tensor | None = None) -> Tensor:
    """Each frame's states (F * N, P, in) through its own weights (F, out, in) -> (F * N, P, out).

    One product after another: together, as a batched one, they take up to half as long again on a CPU.
    """
    frames = states.chunk(len(weights))
    return torch.cat([F.linear(frame, weight, bias) for frame, weight in zip(frames, weights, strict=True)])


def split_heads(states: Tensor, heads: int) -> Tensor:
    """(B, P, heads * width) -> (B, heads, P, width)."""
    return states.unflatten(-1, (heads, -1)).transpose(1, 2)


def repeat_rows(tensor: Tensor, rows: int) -> Tensor:
    """`tensor` (N, ...) repeated along the first axis to `rows`, a multiple of N."""
    return tensor.repeat(rows // len(tensor), *(1,) * (tensor.ndim - 1))
