"""Attention sharing (SD 1.5): several pictures of one scene, drawn together as the frames of a batch.

    model = SharingModel.read("layer_sd15_fg2bg.safetensors", unet)
    with shared_attention(network, model, control=picture) as shared:
        shared(x, timestep, conditioning)           # rows are (image, frame), the frame running fastest
        network.base(x, timestep, conditioning)     # the untouched base

Every attention layer of the UNet gets: for each frame its own low-rank change of q, k, v and out; after that an
attention over the frames at each place (`temporal_*`); and, in files with a control picture, that picture's features
added to what comes in (`control_convs`, fed by one `kwargs_encoder`). Prompts may be given for each frame; they
replace the text of conditional rows only. The base's weights are read and never written: what acts on it are hooks,
which compute attention in the base's stead.

Source: sd-forge-layerdiffuse, `lib_layerdiffusion/attention_sharing.py`; names and shapes are those of its files.
"""

import contextlib
import math
from collections.abc import Callable, Generator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.weak import WeakIdKeyDictionary

from layerdiffuse_mcp.api.detail import Box
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
from layerdiffuse_mcp.engine.models.attention_hooks import Attend, AttentionCall, AttentionHooks
from layerdiffuse_mcp.engine.models.components import Components
from layerdiffuse_mcp.engine.models.networks import Networks, UNetNetwork
from layerdiffuse_mcp.engine.models.stable_diffusion import UNET, StableDiffusion
from layerdiffuse_mcp.engine.sampling.tiles import crop
from layerdiffuse_mcp.engine.types import Conditioning, Network
from layerdiffuse_mcp.engine.weights.patcher import Patch
from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.families.spec import LayerMethod
from layerdiffuse_mcp.hub.headers import read_header


class AttentionSharing:
    """The adapter (see `adapters.py`): a sharing model on the attention layers, which sees a control picture.

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
    ) -> Generator[Networks]:
        """The networks with the method's file on them, which knows no strength."""
        unet, stack, device = networks.unet, model.components.stack(UNET), model.placement.device
        layer = model.components.read(
            method.file, lambda path: SharingModel.read(path, unet.unet), phase="denoising", only=True
        )

        def weight(name: str) -> Tensor:
            return stack.weight(name, device)

        with shared_attention(unet, layer, condition, weight=weight, network=networks.layered) as shared:
            yield replace(networks, layered=shared)

    def numbers(self, components: Components, method: LayerMethod) -> int:
        """The file's, and those that are made of it; an absent file counts nothing."""
        path, part = components.files.layers.get(method.file), components.checkpoint.parts[UNET]
        counts = {name: part.weights[name].numel() for name in part.weights if ".attn" in name}
        return (read_header(path).count if path else 0) + merged_numbers(counts, method.frames)


def merged_numbers(weights: Mapping[str, int], frames: int) -> int:
    """How many numbers `SharedLayer.prepare` keeps: each frame's projections, and the maps among the frames.

    weights: how many the UNet's have, by name.
    """
    counts = {
        name: sum(count for weight, count in weights.items() if weight.endswith(f".{linear}.weight"))
        for name, linear in PROJECTIONS.items()
    }
    return frames * sum(counts.values()) + (1 if frames == 1 else 3) * counts["q"]  # these are as wide as the queries


@contextmanager
def shared_attention(
    unet: UNetNetwork,
    model: SharingModel,
    control: Tensor | None = None,
    *,
    trainable: bool = False,
    weight: Callable[[str], Tensor] | None = None,
    network: Network | None = None,
) -> Generator[Network]:
    """A base with a sharing model on it: a network whose rows are (image, frame), the frame running fastest.

    Weights are merged and control features computed when it is first called, and again only when the base is patched
    differently. With `trainable` that happens in each call, so that gradients reach the model.

    Args:
        control: picture (1 or N, 3, H, W) in 0..1, N images, H and W eight times the latent's, if the model wants one;
            of the whole picture, where the network is asked of a part (`Conditioning.box`).
        weight: the base's weight of a parameter's name, where the UNet itself does not have it in place all the time.
        network: what asks the UNet, where that is not `unet` itself.

    Raises:
        InvalidRequest: the control picture is missing or not wanted; from the network, rows that are not a number of
            frames, or more texts of frames than there are frames.
    """
    shared = _SharedNetwork(unet, model, control, trainable, weight, network)
    with unet.hooked(shared.hooks):
        yield shared


class _SharedNetwork:
    """See `shared_attention`."""

    def __init__(
        self,
        unet: UNetNetwork,
        model: SharingModel,
        control: Tensor | None,
        trainable: bool,
        weight: Callable[[str], Tensor] | None,
        network: Network | None,
    ):
        if model.has_control and control is None:
            raise InvalidRequest("This layer model draws to a given picture, and none was given; give the picture.")
        if control is not None and not model.has_control:
            raise InvalidRequest("This layer model takes no picture; leave it out, or choose a method that takes one.")
        self._unet = unet
        self._network = network or unet
        self._model = model
        self._trainable = trainable
        self._weight: Callable[[str], Tensor] = weight or unet.unet.get_parameter
        self._picture = control
        self._places = attention_places(unet.unet)
        self._layers = [SharedLayer(layer) for layer in model.layers]
        self._prepared_for: tuple[Patch, ...] | None = None
        self._seen: Box | None = None

    @property
    def hooks(self) -> AttentionHooks:
        """The model's layers, each for its attention layer of the UNet."""
        return {place.name: layer for place, layer in zip(self._places, self._layers, strict=True)}

    def __call__(self, x: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        frames = self._model.frames
        if len(x) % frames:
            raise InvalidRequest(
                f"This layer model draws {frames} pictures at a time, and {len(x)} cannot be shared out so."
            )
        if len(conditioning.frames) > frames:
            raise InvalidRequest(
                f"{len(conditioning.frames)} prompts for {frames} frames; give at most one a frame of the method."
            )
        with contextlib.nullcontext() if self._trainable else torch.no_grad():
            if self._trainable or self._prepared_for != self._unet.patches:
                self._prepare()
                self._look(conditioning.box)
            elif self._seen != conditioning.box:
                self._look(conditioning.box)
        # inside, rows are (frame, image): each frame's are one block, which no layer has to gather
        vector, positive = conditioning.vector, conditioning.positive
        inside = Conditioning(
            self._texts(conditioning),
            None if vector is None else by_frame(vector, frames),
            positive=None if positive is None else by_frame(positive, frames),
            box=conditioning.box,
            residuals=tuple(by_frame(one, frames) for one in conditioning.residuals),
        )
        return by_row(self._network(by_frame(x, frames), by_frame(timestep, frames), inside), frames)

    def _prepare(self) -> None:
        self._unet.set_weights()
        self._prepared_for = None
        self._texts = Texts(self._model.frames, self._unet.unet.dtype)
        for place, layer in zip(self._places, self._layers, strict=True):
            check()
            merged = {
                name: layer.model.merged(name, self._weight(f"{place.name}.{linear}.weight"))
                for name, linear in PROJECTIONS.items()
            }
            layer.prepare(merged, self._texts.mask)
        self._prepared_for = self._unet.patches

    def _look(self, box: Box | None) -> None:
        """Have the layers see the control picture, or the part of it that is drawn."""
        self._seen = box
        encoder = self._model.kwargs_encoder
        if encoder is None or self._picture is None:
            return
        seen = self._picture if box is None else crop(self._picture, box)
        features: list[Tensor] = encoder(seen.to(next(encoder.parameters())) * 2 - 1)
        for place, layer in zip(self._places, self._layers, strict=True):
            layer.control = layer.model.control(features[place.level])


class Texts:
    """The texts as the frames read them: the common ones, and the frames' own."""

    def __init__(self, frames: int, dtype: torch.dtype):
        self._frames = frames
        self._dtype = dtype
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
            framed, mask = self._framed(conditioning)
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

    def _framed(self, conditioning: Conditioning) -> tuple[Tensor, Tensor | None]:
        context, positive = conditioning.context, conditioning.positive
        framed = by_frame(context, self._frames)
        prompts = [(f, prompt) for f, prompt in enumerate(conditioning.frames) if prompt is not None]
        if not prompts or positive is None:
            return framed, None
        lengths = [context.shape[1], *(prompt.shape[1] for _, prompt in prompts)]
        longest = max(lengths)
        places = torch.arange(longest, device=context.device)
        rows = list(_filled_up(framed, longest).chunk(self._frames))
        length = [torch.full((len(row),), context.shape[1], device=context.device) for row in rows]
        conditional = by_frame(positive.to(context.device), self._frames).chunk(self._frames)
        for f, prompt in prompts:
            text = repeat_rows(_filled_up(prompt.to(context), longest), len(rows[f]))
            rows[f] = torch.where(conditional[f][:, None, None], text, rows[f])
            length[f] = torch.where(conditional[f], prompt.shape[1], length[f])
        mask = None if min(lengths) == longest else (places < torch.cat(length)[:, None])[:, None, None]
        return torch.cat(rows), mask


class SharedLayer:
    """An attention hook that computes what `SharedAttention` holds, on rows (frame, image), and nothing below it.

    control: what is added to what comes in, (F, N, places, width), if the model sees a picture.
    """

    def __init__(self, model: SharedAttention):
        self.model = model
        self.control: Tensor | None = None

    def prepare(self, merged: Mapping[str, Tensor], mask: Callable[[Tensor], Tensor | None] | None = None) -> None:
        """Set what is the same in each pass: weights (F, out, in) by projection.

        mask: see `Texts.mask`; None where all texts are of one length.
        """
        self._mask = mask
        self._query, self._out = merged["q"], merged["out"]
        self._key_value = torch.cat([merged["k"], merged["v"]], dim=1)
        self._between = self.model.between_frames()
        self._texts: MutableMapping[Tensor, tuple[Tensor, Tensor]] = WeakIdKeyDictionary()

    def __call__(self, call: AttentionCall, attend: Attend) -> Tensor:
        """What the layer adds to its input (B, places, width), B = frames x images: the same shape."""
        states, heads = call.states, call.attention.heads
        hidden = states
        if self.control is not None:
            images = len(hidden) // self.model.frames
            hidden = hidden + repeat_rows(self.control.transpose(0, 1), images).transpose(0, 1).flatten(0, 1)

        query = split_heads(per_frame(hidden, self._query), heads)
        key, value = self._keys_and_values(hidden, call.texts, heads)
        mask = self._mask(call.texts) if self._mask and call.texts is not None else None
        attended = F.scaled_dot_product_attention(query, key, value, mask).transpose(1, 2).flatten(2)
        added = per_frame(attended, self._out, projections(call.attention)["out"].bias)
        if self.control is not None:
            added = added + (hidden - states)

        return self.among_frames(states + added, heads) + added

    def _keys_and_values(self, hidden: Tensor, texts: Tensor | None, heads: int) -> tuple[Tensor, Tensor]:
        """Of the pictures themselves; or of the texts (B, T, C), computed once for all passes that bring them."""
        if texts is None or texts not in self._texts:
            joined = per_frame(hidden if texts is None else texts, self._key_value)
            key, value = (split_heads(half, heads) for half in joined.chunk(2, dim=-1))
            if texts is None:
                return key, value
            self._texts[texts] = key, value
        return self._texts[texts]

    def among_frames(self, hidden: Tensor, heads: int) -> Tensor:
        """Attention over the frames at each place: (B, places, width) -> the same shape."""
        normed = F.layer_norm(hidden, hidden.shape[-1:], eps=NORM_EPS)
        states = [F.linear(normed, weight, bias) for weight, bias in self._between]
        if self.model.frames == 1:
            return states[0]
        width = hidden.shape[-1] // heads
        # (images x places x heads, F, width / heads) each, without a copy
        query, key, value = (state.view(self.model.frames, -1, width).transpose(0, 1) for state in states)
        likeness = torch.bmm(query, key.transpose(1, 2)) / math.sqrt(width)
        mixed = torch.bmm(likeness.softmax(-1), value)
        return self.model.temporal_o(mixed.transpose(0, 1).reshape(hidden.shape))


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
