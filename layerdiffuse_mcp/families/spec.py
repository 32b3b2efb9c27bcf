"""The form of a family's card: everything about a family of models that is known without its weights.

A family is what bases have in common that the same layer files fit: Stable Diffusion 1.5, SDXL. Its card is one
`FamilySpec` in a module of its own (`sd15.py`); `registry.py` collects the cards. Whatever code wants to know about a
family it asks of a field here, so that nothing else branches on which family it is.

    spec = FAMILIES[entry.family]
    spec.latent.downscale, spec.methods["layer_xl_fg2ble"].inputs, "layer_weight" in spec.accepts

This module knows no family, imports no torch, and is the ground that everything else stands on.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, get_args

from layerdiffuse_mcp.families.entries import HubFile, LoraEntry, ModelEntry

Role = Literal["foreground", "background", "blended"]
ROLES: tuple[Role, ...] = get_args(Role)

Phase = Literal["text", "denoising", "pictures"]
"""When a network is used: encoding prompts, sampling, or turning pictures into latents and back."""

MEASURED = 2100, 4100
"""Bytes of activations a pixel in float32: the UNet with guidance, the VAE. As measured at full size, 512 px."""

MAX_TOKENS = 4096
"""Of a prompt that is read in parts: time and memory grow with every 75 tokens."""

Shapes = Mapping[str, Sequence[int]]
"""The tensors of a file: their shapes by key."""


class Task(StrEnum):
    """What a user wishes for."""

    TRANSPARENT = "transparent"
    LAYERS = "layers"
    BACKGROUND_FROM_FOREGROUND = "background_from_foreground"
    FOREGROUND_FROM_BACKGROUND = "foreground_from_background"
    BLENDED_FROM_FOREGROUND = "blended_from_foreground"
    BLENDED_FROM_BACKGROUND = "blended_from_background"
    EXTRACT_FOREGROUND = "extract_foreground"
    EXTRACT_BACKGROUND = "extract_background"
    DECOMPOSE = "decompose"


TOOLS: Mapping[Task, str] = {
    Task.TRANSPARENT: "generate_transparent",
    Task.LAYERS: "generate_layers",
    Task.BACKGROUND_FROM_FOREGROUND: "generate_background_from_foreground",
    Task.FOREGROUND_FROM_BACKGROUND: "generate_foreground_from_background",
    Task.BLENDED_FROM_FOREGROUND: "generate_background_from_foreground",
    Task.BLENDED_FROM_BACKGROUND: "generate_foreground_from_background",
    Task.EXTRACT_FOREGROUND: "extract_layer",
    Task.EXTRACT_BACKGROUND: "extract_layer",
    Task.DECOMPOSE: "decompose_image",
}
"""What messages call the tools by which an agent wishes for a task."""


@dataclass(frozen=True)
class Advice:
    """The settings that the authors recommend; used wherever a request leaves one open."""

    sampler: str = "DPM++ 2M SDE"
    schedule: str = "Karras"
    steps: int = 20
    guidance_scale: float = 7.0
    stop_at: float = 1.0


@dataclass(frozen=True)
class LayerMethod:
    """One layer file and how it is run.

    file: its name in the release, "" for a family that needs none. inputs: the pictures that it is conditioned on, in
    the order in which their latents are joined or shown to the control encoder. outputs: a role a frame; none where
    the model names its layers itself. transparent: the output that is decoded with alpha, if any. adapter: how the file
    acts on the denoiser, a key of `engine.layers.adapters.ADAPTERS`. strength_acts: whether a layer weight changes
    anything. avoid_samplers: beginnings of the names of samplers that leave artefacts with it. takes_apart: what it
    makes are the layers of its one input, of that picture's size, each cut to what is visible of it. published: the
    file's name where that is not the method's. reads: how many pictures one to change counts as beside the result,
    where the prompt says what becomes of it; 0 where it is redrawn by a strength.
    """

    id: str
    family: str
    title: str
    forge_name: str = ""
    inputs: tuple[Role, ...] = ()
    outputs: tuple[Role, ...] = ()
    transparent: Role | None = None
    adapter: str = ""
    strength_acts: bool = False
    advice: Advice = Advice()
    avoid_samplers: tuple[str, ...] = ()
    takes_apart: bool = False
    published: str = ""
    reads: int = 0

    @property
    def file(self) -> str:
        """Name of the layer file in the release; "" where there is none."""
        return (self.published or f"{self.id}.safetensors") if self.adapter else ""

    @property
    def frames(self) -> int:
        """Pictures that are denoised together for one result."""
        return max(1, len(self.outputs))

    def same_place(self, other: "LayerMethod") -> bool:
        """Whether it may stand in for another in a route: same family, same pictures in and out."""
        return (self.family, self.inputs, self.outputs) == (other.family, other.inputs, other.outputs)


@dataclass(frozen=True)
class LatentFormat:
    """How a family's latents relate to pictures and to the space that they are sampled in.

    channels, downscale: a picture (H, W) has a latent (channels, H / downscale, W / downscale). scale, shift: sampled
    latent = (latent - shift) * scale; a number, or one a channel. rgb_factors: red, green and blue in -1..1 for one of
    each channel of a sampled latent, and last of none: what previews are made with. pictures: channels of the pictures
    that the autoencoder takes, 3, or 4 where it has alpha. patch: pixels of a latent, a side, that the denoiser sees as
    one: the latent's sides are multiples of it.
    """

    channels: int
    downscale: int
    scale: float | tuple[float, ...] = 1.0
    shift: float | tuple[float, ...] = 0.0
    rgb_factors: tuple[tuple[float, float, float], ...] = ()
    pictures: Literal[3, 4] = 3
    patch: int = 1

    def padded(self, width: int, height: int) -> tuple[int, int]:
        """Width and height that are drawn for a picture of this size: the next that a latent can have."""
        multiple = self.downscale * self.patch
        return width + -width % multiple, height + -height % multiple

    def shape(self, width: int, height: int) -> tuple[int, int, int]:
        """The latent's shape for a picture whose sides are multiples of `downscale`."""
        return self.channels, height // self.downscale, width // self.downscale


@dataclass(frozen=True)
class Component:
    """One of a base's networks: its name in a diffusers folder, when it is used, where a single file keeps it.

    network: its class as "module:Class", made of the folder's `config.json`; "" for those of Stable Diffusion. renamed:
    beginnings of the names of weights that files have otherwise, the first that fits, and what they are now.
    """

    name: str
    phase: Phase
    title: str
    prefix: str = ""
    network: str = ""
    renamed: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Codec:
    """The family's transparency files: an encoder that hides alpha in a latent, and a decoder that finds it again.

    sees: which latent the decoder is shown, "unscaled" (as the autoencoder has it) or "sampled". clipped: whether what
    it is shown of the picture is within 0..1, as where it was trained.
    """

    encoder: str
    decoder: str
    sees: Literal["unscaled", "sampled"] = "unscaled"
    clipped: bool = True

    @property
    def files(self) -> tuple[str, str]:
        """Their names."""
        return self.encoder, self.decoder


@dataclass(frozen=True)
class Parameters:
    """Parameters of a family's published networks: what a base takes of which there is no file yet.

    block: of the denoiser's largest block and all that is in none. layer: of what its usual method adds.
    """

    text: int
    denoiser: int
    block: int
    pictures: int
    layer: int = 0


@dataclass(frozen=True)
class Kind:
    """A kind of `.safetensors` file: one is of this kind when it holds all marks, one of `any_of`, and passes `test`.

    title: with an article, to stand in a sentence. marks, any_of: fragments of keys. family: set where such a file can
    serve as a base. adapts: the family whose bases it changes. instead: of a base in a form that is not read, what to
    use.
    """

    name: str
    title: str
    marks: tuple[str, ...] = ()
    any_of: tuple[str, ...] = ()
    test: Callable[[Shapes], bool] | None = None
    family: str | None = None
    adapts: str | None = None
    instead: str = ""


@dataclass(frozen=True)
class FamilySpec:
    """A family's card.

    native_size: pixels a side of the pictures it was trained on. size_step: sizes that the planner chooses are
    multiples of it. near: areas that it draws as well, in those of such a square. routes: for each task that the family
    can do its methods in the order in which they run; a later one takes what an earlier one made. repacked: files that
    hold the same weights in another layout, by official name. embedded: bases inside the package. kinds: how a file's
    header is recognised, the base itself last. adapters: the same of networks that are added to a base. pipelines,
    folder_problem: the same of a diffusers folder, asked of its denoiser's configuration. accepts: the options of a
    request that act here; the planner refuses any other. batch_limit: results that are drawn as one batch at most.
    least_steps: fewer have no schedule. drawer, model: what draws, and the class that computes, as "module:Class".
    half: the format of 16 bits that it runs in on a GPU. extra: what has to be installed beside the package for it.
    licence: of a base that tells none of its own. frames: pictures that are denoised together for a usual result.
    most_tokens: of a prompt, as CLIP counts them; a longer one is refused. activations: bytes a pixel of these, and of
    one that is decoded, in float32. heads, head_width: of attention, which shapes do not tell (one of the two).
    steps_table: the ten-step levels of "Align Your Steps".
    """

    id: str
    title: str
    native_size: int
    latent: LatentFormat
    components: tuple[Component, ...]
    methods: Mapping[str, LayerMethod]
    routes: Mapping[Task, tuple[str, ...]]
    model: str
    drawer: Literal["sampled", "diffusers"] = "sampled"
    accepts: frozenset[str] = frozenset()
    size_step: int = 64
    near: tuple[float, float] = (0.5, 1.5)
    batch_limit: int = 8
    least_steps: int = 1
    clip_skip: int = 1
    codec: Codec | None = None
    files: Mapping[str, HubFile] = field(default_factory=dict[str, HubFile])
    repacked: Mapping[str, tuple[HubFile, ...]] = field(default_factory=dict[str, tuple[HubFile, ...]])
    bases: tuple[ModelEntry, ...] = ()
    embedded: tuple[ModelEntry, ...] = ()
    loras: tuple[LoraEntry, ...] = ()
    kinds: tuple[Kind, ...] = ()
    adapters: tuple[Kind, ...] = ()
    pipelines: frozenset[str] = frozenset()
    folder_problem: Callable[[Mapping[str, Any]], str | None] = lambda _: None
    parameters: Parameters | None = None
    heads: int | None = None
    head_width: int | None = None
    vae_fits_float16: bool = True
    steps_table: tuple[float, ...] = ()
    half: Literal["float16", "bfloat16"] = "float16"
    extra: str = ""
    licence: str | None = None
    frames: int = 1
    most_tokens: int = MAX_TOKENS
    activations: tuple[int, int] = MEASURED

    @property
    def denoiser(self) -> str:
        """The name of the component that denoises."""
        return self.names("denoising")[0]

    def native_size_of(self, denoiser: Mapping[str, Any]) -> int:
        """Pixels a side of the pictures that a base was trained on, by its denoiser's configuration."""
        size = denoiser.get("sample_size")
        return size * self.latent.downscale if isinstance(size, int) and size > 0 else self.native_size

    def names(self, phase: Phase | None = None) -> tuple[str, ...]:
        """The names of its components, of one phase or of all."""
        return tuple(component.name for component in self.components if phase in (None, component.phase))

    @property
    def encodes_alpha(self) -> bool:
        """Whether its pictures with alpha have latents: by a codec, or by an autoencoder of four channels."""
        return self.codec is not None or self.latent.pictures == 4

    def component(self, name: str) -> Component:
        """The component of that name; KeyError when there is none."""
        return {component.name: component for component in self.components}[name]

    def layer_files(self, methods: Sequence[str] | None = None) -> tuple[str, ...]:
        """Names of the files that a base works with: the codec's, then those of `methods` (all when left out)."""
        chosen = (self.methods[name] for name in (self.methods if methods is None else methods))
        return (*(self.codec.files if self.codec else ()), *(method.file for method in chosen if method.file))

    def given_roles(self, task: Task) -> tuple[Role, ...]:
        """The pictures that a user has to give for a task: what its methods need and do not make themselves."""
        needed: list[Role] = []
        made: set[Role] = set()
        for method in (self.methods[name] for name in self.routes[task]):
            needed.extend(role for role in method.inputs if role not in made and role not in needed)
            made.update(method.outputs)
        return tuple(needed)
