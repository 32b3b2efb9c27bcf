"""The values and protocols that the rooms of the engine hand to each other.

    output = network(x, timestep, conditioning)          # any Network
    model.spec, model.decode_latents(latents)            # any DiffusionModel
    rgba = codec.decode(latent)                          # any AlphaCodec
    LayerImage("foreground", seed, pixels, latent)       # what a drawer returns

It knows no file and no family.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from torch import Tensor

from layerdiffuse_mcp.api.detail import Box, Tiling
from layerdiffuse_mcp.api.plan import DrawPlan
from layerdiffuse_mcp.api.requests import Stage
from layerdiffuse_mcp.families.spec import FamilySpec, LatentFormat, Role
from layerdiffuse_mcp.images.alpha import Bytes


@dataclass(frozen=True)
class Conditioning:
    """What the network is conditioned on. B rows: 1 (the same for each image of the batch) or one an image.

    context: text embedding (B, T, C). vector: pooled text and size embedding (B, A), or None. concat: latents (B, C, h,
    w) that go behind the noisy latent, unscaled, or None. positive: bool (B,), which rows belong to the conditional
    pass; set by the denoiser, which joins the rows as [unconditional..., conditional...]. box: which part of the whole
    picture the rows are, in pixels; None where they are all of it. frames: text embeddings (1 or N, T, C), N results,
    of frames that have a text of their own in the conditional pass, else None; may be fewer. residuals: what is added
    to the outputs of the network's descending blocks, and last of its middle one, B rows each; or none.
    """

    context: Tensor
    vector: Tensor | None = None
    concat: Tensor | None = None
    positive: Tensor | None = None
    box: Box | None = None
    frames: tuple[Tensor | None, ...] = ()
    residuals: tuple[Tensor, ...] = ()


@dataclass(frozen=True, eq=False)
class Timed:
    """A conditioning that changes while a picture is drawn: parts in order, each with the call of the denoiser up to
    which it lasts; and its weight among those that guide together."""

    parts: tuple[tuple[int, Conditioning], ...]
    weight: float = 1.0

    def at(self, call: int) -> Conditioning:
        """What is read in a call, counted from 0; beyond the last part the first, as in the reference."""
        return next((conditioning for end, conditioning in self.parts if call <= end), self.parts[0][1])

    def changed(self, change: Callable[[Conditioning], Conditioning]) -> "Timed":
        """The same with another conditioning in each part."""
        return Timed(tuple((end, change(conditioning)) for end, conditioning in self.parts), self.weight)


Encode = Callable[[], Tensor]
"""Makes the latent of the picture to edit, (1, C, h, w), as sampled."""


class Network(Protocol):
    """A noise prediction network."""

    def __call__(self, x: Tensor, timestep: Tensor, conditioning: Conditioning, /) -> Tensor:
        """Predict from x (B, C + K, h, w), float32, at timestep (B,), int64, 0..999: (B, C, h, w) of any dtype.

        x is scaled, with `concat` (of K channels) already behind it, so the conditioning's `concat` is None;
        `positive` is set, and context and vector have B rows.
        """
        ...


class DiffusionModel(Protocol):
    """A base in memory, as whoever keeps it or uses its autoencoder sees it; drawers know more of theirs.

    name: the catalogue's. weights: the files of the last drawing, as `identify` found them. pixels_at_once: how many
    pixels may be drawn as one batch. batch: the results in the batch that is being drawn.
    """

    name: str
    weights: dict[str, str | None]
    pixels_at_once: int
    batch: int

    @property
    def spec(self) -> FamilySpec:
        """The family's card."""
        ...

    @property
    def latent(self) -> LatentFormat:
        """The base's own latent format; its autoencoder takes and returns pictures of `latent.pictures` channels."""
        ...

    @property
    def placement(self) -> Any:
        """Where it runs, and in which number format: a `device.placement.Placement`."""
        ...

    def encode_image(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures (B, P, H, W), 0..1: mean and deviation of their latents (B, C, h, w), float32, unscaled."""
        ...

    def decode_latents(self, latents: Tensor, clipped: bool = True) -> Tensor:
        """Sampled latents (B, C, h, w) as pictures (B, P, H, W), float32, 0..1, or about that where not `clipped`."""
        ...

    def identify(self, methods: Collection[str], report: Callable[[str], None]) -> None:
        """Note in `weights` which files a drawing by `methods` was made with."""
        ...


class PipelineModel(DiffusionModel, Protocol):
    """A base that a diffusers pipeline draws with.

    The pipeline's networks are the model's components, and it takes `latents`, a `generator` a result,
    `callback_on_step_end` and `output_type="latent"`, as diffusers' own do.
    """

    @property
    def pipeline(self) -> Any:
        """The pipeline; a network of it is on the device while it computes."""
        ...

    def noise_shape(self, plan: DrawPlan) -> tuple[int, ...]:
        """The shape of the noise that one result of a plan, as drawn, starts from."""
        ...

    def decoded(self, plan: DrawPlan) -> int:
        """How many layers of one result are decoded."""
        ...

    def use_layer(self, stage: Stage) -> None:
        """Put the layer file of a stage on the networks, where it has one."""
        ...

    def calls(self, plan: DrawPlan) -> int:
        """How many steps the pipeline does for a plan."""
        ...

    def redrawn(self, noise: Tensor, encode: Encode, plan: DrawPlan) -> Tensor:
        """What the pipeline begins with, (B, *noise_shape), to edit a picture.

        Raises InvalidRequest where it changes no pictures.
        """
        ...

    def pack(self, noise: Tensor) -> Tensor:
        """Noise (B, *noise_shape) as the pipeline takes it for `latents`."""
        ...

    def unpack(self, latents: Tensor, plan: DrawPlan) -> Tensor:
        """The pipeline's latents, of a step or at the end, as (B, frames, C, h, w), sampled."""
        ...

    def arguments(
        self, plan: DrawPlan, prompts: Sequence[str], negative: Sequence[str], pictures: "Pictures"
    ) -> dict[str, Any]:
        """The prompts, one a result, given pictures, the size and those settings of the plan's one stage that act here,
        as the pipeline calls them.
        """
        ...

    def run(self, **arguments: Any) -> Tensor:
        """The pipeline's latents."""
        ...

    def layers(self, latents: Tensor, plan: DrawPlan) -> Sequence["LayerLatent"]:
        """What one result's latents (frames, C, h, w) are, from the bottom up."""
        ...


class AlphaCodec(Protocol):
    """Between pictures with alpha and latents: LayerDiffuse's two networks, or an autoencoder of four channels.

    views: in how many a latent is decoded, as `on_view` counts them.
    """

    views: ClassVar[int]

    def load(self) -> None:
        """Have in memory what it needs."""
        ...

    def encode(self, rgba: Bytes, on_network: Callable[[], None] | None = None, tiling: Tiling | None = None) -> Tensor:
        """(H, W, 4), uint8, straight alpha, to (1, C, h, w), float32, as sampled, a tile at a time.

        on_network: called after each network and tile.
        """
        ...

    def decode(
        self, latent: Tensor, on_view: Callable[[int], None] | None = None, tiling: Tiling | None = None
    ) -> Bytes:
        """A sampled latent (C, h, w) as (H, W, 4), uint8, straight alpha, a tile at a time.

        on_view: `on_view(n)` when n more views are done, of each tile as many.
        """
        ...


@dataclass(frozen=True)
class Edit:
    """The pictures to redraw, (H, W, 4) or (H, W, 3), and the mask (H, W), 255 where to draw anew; uint8, drawn size.

    images: one for all that is drawn together, or one for each (image, frame).
    """

    images: Sequence[Bytes]
    mask: Bytes | None = None


@dataclass(frozen=True)
class Pictures:
    """The pictures that plans start from: by role (H, W, 4), uint8, any size; the one to edit; and those that controls
    follow, in the plan's order, (H, W, 4), uint8, any size; and the one that is referred to, and where, likewise.
    """

    layers: Mapping[Role, Bytes] = field(default_factory=dict[Role, Bytes])
    edit: Edit | None = None
    control: Sequence[Bytes] = ()
    reference: Bytes | None = None
    reference_mask: Bytes | None = None


@dataclass(frozen=True)
class LayerLatent:
    """One layer before it is decoded: (C, h, w) as sampled; its role, or the name that the model gives it.

    box: where it lies in the result, None where it fills it.
    """

    latent: Tensor
    name: str = ""
    role: Role | None = None
    box: Box | None = None


@dataclass(frozen=True)
class LayerImage:
    """One layer of one result: `pixels` (H, W, 4) with alpha or (H, W, 3), uint8; `latent` (C, h, w) as sampled.

    It has a role, or a name of the model's own. box: where it lies in the result, None where it fills it. order: of
    layers that lie on each other, 0 at the bottom. drifted: of one that was redrawn larger, the share of its alpha that
    is elsewhere since.
    """

    role: Role | None
    seed: int
    pixels: Bytes
    latent: Tensor
    name: str = ""
    box: Box | None = None
    order: int = 0
    drifted: float = 0.0
