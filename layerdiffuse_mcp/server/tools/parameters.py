"""Parameters that several tools share: pictures, sizes, and the two objects that hold what is rarely set.

def generate_transparent(ctx, *, prompt: Prompt, options: Omittable[GivenOptions] = None, ...)
fields = fields_of(prompt, options)                 # of a GenerateRequest, those that were given
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, WithJsonSchema

from layerdiffuse_mcp.api.choices import PREPROCESS
from layerdiffuse_mcp.api.control import MAX_CONTROLS, MAX_STRENGTH, AddedName, ControlUse, ReferenceUse
from layerdiffuse_mcp.api.detail import STRENGTH, Scale, Strength
from layerdiffuse_mcp.api.fields import (
    MAX_PROMPT_CHARACTERS,
    MAX_SIZE,
    MIN_SIZE,
    ClipSkip,
    Count,
    Denoising,
    Emphasis,
    FileWords,
    Fit,
    Guidance,
    LayerWeight,
    Metadata,
    MethodName,
    ModelName,
    NegativePrompt,
    NoiseSource,
    Omittable,
    PictureFormat,
    ResizeMode,
    SamplerName,
    SaveLatent,
    ScheduleName,
    SpeedName,
    Steps,
    StopAt,
    near,
)
from layerdiffuse_mcp.api.lenient import Lenient
from layerdiffuse_mcp.api.requests import MAX_SUBJECTS
from layerdiffuse_mcp.api.sizes import fit
from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.families.spec import ROLES
from layerdiffuse_mcp.hub import catalog
from layerdiffuse_mcp.settings import Settings
from layerdiffuse_mcp.text.emphasis import extract_loras
from layerdiffuse_mcp.wording import quoted

SHAPES: Mapping[str, tuple[int, int]] = {"square": (1, 1), "portrait": (2, 3), "landscape": (3, 2), "wide": (16, 9)}
"""Words for sizes: the shape, width to height, of as many pixels as the model draws by itself."""


def file_field(description: str) -> Any:
    """Annotation of a file that is read: by path, or by the id of a picture that this server made."""
    return Field(min_length=1, max_length=4096, description=description)


def _layer_prompt(role: str) -> Any:
    description = f"What the {role} shows; it is put before prompt for this layer alone"
    return Field(max_length=MAX_PROMPT_CHARACTERS, description=description)


Preview = Annotated[bool, Field(description="Attach a small preview of the result; the files are whole without it")]
Wait = Annotated[
    float,
    Field(
        ge=0,
        le=600,
        allow_inf_nan=False,
        description="Seconds to wait for the result, 50 unless set otherwise; then a job_id for get_job is returned",
    ),
]
JobId = Annotated[str, Field(min_length=1, max_length=100, description="Id of a job, from the call that began it")]
Size = Annotated[
    str,
    Field(
        max_length=100,
        description=f'Width x height, {MIN_SIZE} to {MAX_SIZE} pixels each, as in "1024x768"; or {", ".join(SHAPES)} '
        "for about as many pixels as the model draws best; default: the model's own, in the shape of a given picture",
        examples=["1024x768", *SHAPES],
    ),
]

Foreground = Annotated[str, file_field("RGBA picture of the foreground: a path or an image id")]
Background = Annotated[str, file_field("Picture of the background: a path or an image id")]
Blended = Annotated[str, file_field("The finished picture, both layers together: a path or an image id")]
Image = Annotated[str, file_field("RGBA picture: a path or an image id")]
Mask = Annotated[
    str, file_field("Picture that is white where image is to change: a path or an image id; default: everywhere")
]


LoraName = Annotated[str, Field(min_length=1, max_length=255, pattern="^[^<>:]+$")]
LoraWeight = Annotated[float, Field(ge=-4, le=4, allow_inf_nan=False)]


class Described(Lenient):
    """An object among the parameters; the tool refuses names that it does not have."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @property
    def given(self) -> dict[str, Any]:
        """What was given, by name."""
        return {name: value for name in self.model_fields_set if (value := getattr(self, name)) is not None}


class LayerPrompts(Described):
    """Own prompts of the layers."""

    foreground: Omittable[Annotated[str, _layer_prompt("foreground")]] = None
    background: Omittable[Annotated[str, _layer_prompt("background")]] = None
    blended: Omittable[Annotated[str, _layer_prompt("finished picture, both layers together,")]] = None


class GivenControl(ControlUse):
    """What is said of a ControlNet: in a set its picture may be one of `poses`; a redrawing has the rest already."""

    model: Omittable[AddedName] = None
    image: Omittable[Annotated[str, Field(min_length=1, max_length=4096)]] = None


CONTROLS = {
    "type": "array",
    "maxItems": MAX_CONTROLS,
    "items": {"type": "object"},
    "description": "ControlNets of list_models, each {model; image: path or id, to follow; preprocess: "
    f"{', '.join(PREPROCESS)}, default {ControlUse().preprocess}, as for a map; strength: above 0 to {MAX_STRENGTH}, "
    f"default {ControlUse().strength:g}; start, end: shares of the steps, default {ControlUse().start:g}, "
    f"{ControlUse().end:g}; frames: layers that follow, of {', '.join(ROLES)}, default all}}",
    "examples": [[{"model": "canny", "image": "house.png", "preprocess": "canny", "strength": 0.8, "end": 0.7}]],
}
"""What a schema says of controls: all tools show it, so it is short."""


class GivenReference(ReferenceUse):
    """What is said of an IP-Adapter, the picture that is referred to, and where; a redrawing has the rest already."""

    model: Omittable[AddedName] = None
    image: Omittable[Annotated[str, Field(min_length=1, max_length=4096)]] = None
    mask: Omittable[Annotated[str, Field(min_length=1, max_length=4096)]] = None


REFERENCED = {
    "type": "object",
    "description": f"An IP-Adapter of list_models {{model; image: path or id, whose subject or style is taken up; "
    f"strength: above 0 to {MAX_STRENGTH}, default {ReferenceUse().strength:g}; mask: image that is white where it "
    "acts, default everywhere}",
    "examples": [{"model": "ip-adapter-plus_sd15", "image": "cat.png", "strength": 0.6}],
}


class Redrawing(Described):
    """What is rarely set of a redrawing; whatever is left out is as the model's and the method's authors advise."""

    model: Omittable[ModelName] = None
    negative_prompt: Omittable[NegativePrompt] = None
    loras: Omittable[
        Annotated[
            dict[LoraName, LoraWeight],
            Field(
                max_length=16,
                description="LoRAs that list_models names, each with its strength, 1 as it was trained, -4 to 4",
                examples=[{"watercolour": 0.8}],
            ),
        ]
    ] = None
    speed: Omittable[SpeedName] = None
    control: Omittable[Annotated[list[GivenControl], Field(max_length=MAX_CONTROLS), WithJsonSchema(CONTROLS)]] = None
    reference: Omittable[Annotated[GivenReference, WithJsonSchema(REFERENCED)]] = None
    method: Omittable[MethodName] = None
    sampler: Omittable[SamplerName] = None
    schedule: Omittable[ScheduleName] = None
    steps: Omittable[Steps] = None
    guidance_scale: Omittable[Guidance] = None
    layer_weight: Omittable[LayerWeight] = None
    stop_at: Omittable[StopAt] = None
    clip_skip: Omittable[ClipSkip] = None
    emphasis: Omittable[Emphasis] = None
    noise_source: Omittable[NoiseSource] = None


class RedrawingWithCount(Redrawing):
    """The same, for a tool that has no room for `count` beside it."""

    count: Omittable[Count] = None


class Detailed(Described):
    """How what was drawn is enlarged and redrawn."""

    alone: ClassVar[str | None] = "scale"

    scale: Scale = 2.0
    strength: Strength = STRENGTH


class Drawing(Redrawing):
    """What is rarely set; whatever is left out is as the model's and the layer method's authors advise."""

    resize_mode: Omittable[ResizeMode] = None
    detail: Omittable[
        Annotated[
            Detailed,
            Field(
                description="Enlarge the finished result and redraw it with finer detail, in tiles: it has scale times "
                "the size, and takes about scale x scale x strength times as long on top",
                examples=[{"scale": 2}],
            ),
        ]
    ] = None


class SetOptions(Drawing):
    """The same, for a set."""

    poses: Omittable[
        Annotated[
            list[Annotated[str, Field(min_length=1, max_length=4096)]],
            Field(
                max_length=MAX_SUBJECTS,
                description="Pictures (paths or ids), one a subject in their order, each followed by the first of "
                "control in place of an image of its own; the subjects may be equal",
                examples=[["walk-1.png", "walk-2.png"]],
            ),
        ]
    ] = None


class Options(Drawing):
    """The same, for a tool that may draw several layers, or start from a picture."""

    layer_prompts: Omittable[
        Annotated[
            LayerPrompts,
            Field(
                description="Own prompts of single layers, where a tool draws several (SD1.5 only)",
                examples=[{"background": "a sunny meadow"}],
            ),
        ]
    ] = None
    strength: Omittable[Denoising] = None
    fit: Omittable[Fit] = None


class OptionsWithCount(Options):
    """The same, for a tool that has no room for `count` beside it."""

    count: Omittable[Count] = None


class PictureFile(Described):
    """What becomes of a picture that is made at once."""

    name: Omittable[Annotated[str, Field(max_length=100, description="Words that the files are named by")]] = None
    preview: Preview = True
    format: Omittable[PictureFormat] = None


class Waiting(Described):
    """How a call ends."""

    wait_seconds: Omittable[Wait] = None
    name: Omittable[FileWords] = None
    key: Omittable[
        Annotated[
            str,
            Field(
                min_length=1,
                max_length=200,
                description="Any text of your own: the same call with it within a day gets this job, not another",
            ),
        ]
    ] = None


class Delivery(Waiting, PictureFile):
    """The same, where pictures are made by a job."""


class Output(Delivery):
    """The same, where pictures are drawn."""

    save_latent: Omittable[SaveLatent] = None
    metadata: Omittable[Metadata] = None


GivenOptions = Annotated[
    Options,
    Field(
        description="What is rarely set; whatever is left out is as advised",
        examples=[{"negative_prompt": "blurry", "steps": 30}],
    ),
]
GivenOutput = Annotated[
    Output,
    Field(
        description="How long to wait, and what files to make",
        examples=[{"preview": False, "name": "apple", "format": "webp"}],
    ),
]
FILES = ("name", "format", "save_latent", "metadata")
"""Fields of an output that say how files are made; the others are about the call."""


def fields_of(prompt: str | None, options: Redrawing | None, output: Waiting | None = None) -> dict[str, Any]:
    """Those fields of a request that were given; LoRAs stand in its prompt."""
    given = options.given if options else {}
    loras: Mapping[str, float] = given.pop("loras", {})
    if prompt is not None:
        given["prompt"] = tagged(prompt, loras)
    for name, value in given.items():
        if isinstance(value, Described):
            given[name] = value.given
        elif name == "control":
            given[name] = [one.said() for one in value]
        elif name == "reference":
            given[name] = value.said()
    return given | {name: value for name, value in (output.given if output else {}).items() if name in FILES}


def tagged(prompt: str, loras: Mapping[str, float]) -> str:
    """A prompt that names these LoRAs, besides those that it named before."""
    return " ".join([prompt, *(f"<lora:{name}:{weight:g}>" for name, weight in loras.items())])


def without_tags(prompt: str) -> tuple[str, str]:
    """A prompt without its LoRAs, and their tags alone."""
    words, _ = extract_loras(prompt)
    return words.strip(), " ".join(re.findall(r"<lora:[^<>]+>", prompt))


def width_and_height(size: str | None, model: str | None, settings: Settings) -> dict[str, int]:
    """The fields of a request for a size in words or numbers; looks a model up, so it belongs in a thread.

    Raises:
        InvalidRequest: it is neither, or out of range.
        ModelError: there is no such model.
    """
    if size is None:
        return {}
    wanted = size.strip().lower()
    if wanted in SHAPES:
        native = catalog.find(model, settings).native_size
        width, height = fit(SHAPES[wanted], native, min(64, native // 4))
        return {"width": width, "height": height}
    numbers = re.fullmatch(r"(\d{1,6})\s*[x×*]\s*(\d{1,6})", wanted)
    if numbers is None:
        raise InvalidRequest(
            f"size {quoted(size)} is not understood: give width x height in pixels as in '1024x768', or a word. "
            f"{near(wanted, SHAPES)}"
        )
    width, height = int(numbers[1]), int(numbers[2])
    if not all(MIN_SIZE <= side <= MAX_SIZE for side in (width, height)):
        raise InvalidRequest(
            f"size {quoted(size)}: width and height must be from {MIN_SIZE} to {MAX_SIZE} pixels. "
            "compose_layers scales what is drawn to any other size."
        )
    return {"width": width, "height": height}
