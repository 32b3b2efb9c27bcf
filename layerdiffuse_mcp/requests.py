"""What can be asked of the engine: the one vocabulary of tools, command line and Python API.

A request is validated the moment it is made, knows no MCP and no model, and pickles.
What it leaves open (`None`) the engine fills from the method's advice and the model's
native size; the outcome's recipe is the same request with nothing left open, so that
validating a recipe gives a request that draws the same picture again.

    request = validated(GenerateRequest, {"prompt": "a red apple", "seed": 7})
"""

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from layerdiffuse_mcp.choices import EMPHASIS, NOISE_SOURCES, RESIZE_MODES, SAMPLERS, SCHEDULES
from layerdiffuse_mcp.errors import QUOTED, InvalidRequest, quoted, short
from layerdiffuse_mcp.methods import METHODS, ROUTES, Role, Task, families_for

MIN_SIZE, MAX_SIZE = 64, 2048
MAX_STEPS = 150
MAX_COUNT = 8
MAX_SEED = 2**32 - 1
MAX_PROMPT_CHARACTERS = 20_000
MAY_DIFFER = frozenset({"prompt", "negative_prompt", "seed", "count", "save_latent"})
"""In what requests may differ that are drawn as one batch."""
DRAW_SEED = -1
MOST_ERRORS = 8
"""Wrong parameters that one message names."""
LONGEST_ROUTE = max(map(len, ROUTES.values()))


def near(name: str, names: Collection[str]) -> str:
    """A sentence that lists `names`, the nearest to `name` first when there are many."""
    close = difflib.get_close_matches(name[:QUOTED], names, n=3, cutoff=0.4)
    if len(names) > 6 and close:
        return f"Did you mean {', '.join(close)}? Allowed: {', '.join(names)}."
    return f"Allowed: {', '.join(names)}."


@dataclass(frozen=True)
class OneOf:
    """Annotation: a string that is one of a table's names; its schema is an enum, its error lists them."""

    names: tuple[str, ...]
    what: str

    def check(self, value: str) -> str:
        """The value itself; ValueError when it is none of the names."""
        if value not in self.names:
            raise ValueError(f"unknown {self.what} {quoted(value)}. {near(value, self.names)}")
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "enum": list(self.names)}


def bounded(low: float, high: float, description: str) -> Any:
    """The bounds and the description of a finite number."""
    return Field(ge=low, le=high, allow_inf_nan=False, description=description)


SamplerName = Annotated[
    str,
    OneOf(tuple(SAMPLERS), "sampler"),
    Field(description="Sampling method; default: what the layer method's authors advise"),
]
ScheduleName = Annotated[
    str, OneOf(tuple(SCHEDULES), "schedule"), Field(description="Noise schedule; Automatic is the sampler's own")
]
MethodName = Annotated[
    str, OneOf(tuple(METHODS), "method"), Field(description="Layer method, where a task has more than one")
]
ResizeMode = Annotated[
    str, OneOf(RESIZE_MODES, "resize mode"), Field(description="How given pictures are fitted to the size")
]
NoiseSource = Annotated[
    str,
    OneOf(NOISE_SOURCES, "noise source"),
    Field(description="nvidia draws on any device what CUDA draws; cpu is torch's own generator"),
]
Emphasis = Annotated[
    str, OneOf(EMPHASIS, "emphasis"), Field(description="Whether (word:1.2) keeps the mean of the embeddings")
]

Steps = Annotated[int, bounded(1, MAX_STEPS, "Denoising steps; default: as advised, usually 20")]
Guidance = Annotated[
    float, bounded(1, 30, "How strictly to follow the prompt; 1 ignores negative_prompt; default: as advised")
]
StopAt = Annotated[
    float, bounded(0, 1, "Share of the sampling in which the layer file acts; then the plain base goes on")
]
LayerWeight = Annotated[float, bounded(0, 2, "Strength of the layer file (SDXL only)")]
Size = Annotated[int, bounded(MIN_SIZE, MAX_SIZE, "Pixels; default: the model's native size")]
Seed = Annotated[int, bounded(DRAW_SEED, MAX_SEED, "Same seed, same picture; -1 draws one and reports it")]
Count = Annotated[int, bounded(1, MAX_COUNT, "Results to draw, with seeds seed, seed + 1, ...")]
ClipSkip = Annotated[int, bounded(1, 12, "Text encoder layers to stop before the end (SD1.5 only)")]
Denoising = Annotated[
    float,
    Field(gt=0, le=1, allow_inf_nan=False, description="How much of the picture to redraw: 0.2 keeps its shape"),
]
Prompt = Annotated[
    str, Field(max_length=MAX_PROMPT_CHARACTERS, description="What to draw; (word:1.2) stresses, [word] weakens")
]
NegativePrompt = Annotated[str, Field(max_length=MAX_PROMPT_CHARACTERS, description="What to keep out")]
ModelName = Annotated[
    str, Field(max_length=200, description="Base model, one of list_models; default: the best prepared")
]

DrawnWith = Annotated[
    dict[Annotated[str, Field(max_length=255)], Annotated[str, Field(pattern=r"^[0-9a-f]{10,64}$")] | None],
    Field(max_length=64, description="What a recipe says of its files: the beginnings of their SHA-256, by name"),
]


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Stage(_Request):
    """One method of a route with all its settings made explicit."""

    method: MethodName
    sampler: SamplerName
    schedule: ScheduleName
    steps: Steps
    guidance_scale: Guidance
    stop_at: StopAt = 1.0
    layer_weight: LayerWeight = 1.0


class GenerateRequest(_Request):
    """Draw pictures for a task.

    The flat settings (`method` ... `layer_weight`) apply to every stage of the task's route;
    `stages` replaces them all and is what a recipe holds.

    Picture sizes are in pixels; seeds draw `count` results as seed, seed + 1, ...
    (SD1.5 methods with several frames use one further seed a frame).
    """

    kind: Literal["generate"] = "generate"
    task: Task = Task.TRANSPARENT
    model: ModelName | None = None

    prompt: Prompt = ""
    negative_prompt: NegativePrompt = ""
    layer_prompts: dict[Role, Prompt] = Field(default_factory=dict)

    inputs: dict[Role, Path] = Field(default_factory=dict)
    image: Annotated[Path | None, Field(description="RGBA picture to change")] = None
    mask: Annotated[Path | None, Field(description="Picture whose white part says where to change image")] = None
    strength: Denoising = 0.6
    resize_mode: ResizeMode = "Crop and Resize"

    seed: Seed = DRAW_SEED
    count: Count = 1
    width: Size | None = None
    height: Size | None = None

    method: MethodName | None = None
    sampler: SamplerName | None = None
    schedule: ScheduleName | None = None
    steps: Steps | None = None
    guidance_scale: Guidance | None = None
    stop_at: StopAt | None = None
    layer_weight: LayerWeight | None = None
    stages: Annotated[tuple[Stage, ...] | None, Field(min_length=1, max_length=LONGEST_ROUTE)] = None

    clip_skip: ClipSkip | None = None
    emphasis: Emphasis = "Original"
    noise_source: NoiseSource = "nvidia"
    save_latent: Annotated[bool, Field(description="Also save the latent, for decode_transparent_latent")] = False
    notes: Annotated[tuple[str, ...], Field(description="What was decided before; the outcome's warnings say it")] = ()
    drawn_with: DrawnWith | None = None

    @property
    def pictures(self) -> dict[str, Path]:
        """The pictures that it starts from, by the name of their field or layer; the first gives the shape."""
        files = {"image": self.image, **self.inputs, "mask": self.mask}
        return {name: path for name, path in files.items() if path is not None}

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> "GenerateRequest":
        if not self.prompt.strip() and not any(text.strip() for text in self.layer_prompts.values()):
            raise ValueError("prompt is empty: say what to draw, for example 'a red apple'")
        if self.seed != DRAW_SEED and self.seed + self.count - 1 > MAX_SEED:
            raise ValueError(f"seed + count passes the largest seed {MAX_SEED}: choose a smaller seed")
        if self.mask is not None and self.image is None:
            raise ValueError("mask is given without image: a mask says which part of an image to change")
        if self.image is not None and self.task is not Task.TRANSPARENT:
            raise ValueError("image is the picture that edit_transparent changes; layer tasks take inputs instead")
        if self.method is not None:
            self._method_can_do_the_task(self.method)
        for stage in self.stages or ():
            self._method_can_do_the_task(stage.method)
        if self.stages and not is_route(self.task, [stage.method for stage in self.stages]):
            methods = ", then ".join(stage.method for stage in self.stages)
            raise ValueError(f"the stages {methods} do not make the task {self.task.value}: leave stages out")
        return self

    def _method_can_do_the_task(self, method: str) -> None:
        alternatives = [m.id for m in METHODS.values() if can_do(m.id, self.task)]
        if method not in alternatives:
            raise ValueError(f"method {method} cannot do the task {self.task.value}. {near(method, alternatives)}")


def can_do(method: str, task: Task) -> bool:
    """Whether `method` has a place in one of the task's routes."""
    return any(
        family == METHODS[method].family and can_replace(method, stage)
        for family in families_for(task)
        for stage in ROUTES[task, family]
    )


def can_replace(method: str, other: str) -> bool:
    """Whether a route's method may be replaced by another: when that has the same inputs and outputs."""
    return (METHODS[method].inputs, METHODS[method].outputs) == (METHODS[other].inputs, METHODS[other].outputs)


def is_route(task: Task, methods: Sequence[str]) -> bool:
    """Whether the methods, in this order, are one of the task's routes."""
    return any(
        len(methods) == len(ROUTES[task, family]) and all(map(can_replace, methods, ROUTES[task, family]))
        for family in families_for(task)
    )


def batch_key(request: "Request") -> str | None:
    """Equal for requests that can be drawn as one batch; None for one that cannot share a batch at all."""
    if not isinstance(request, GenerateRequest):
        return None
    if any("<lora:" in text for text in (request.prompt, *request.layer_prompts.values())):
        return None  # it changes the weights that all would be drawn with
    return request.model_dump_json(exclude={*MAY_DIFFER, "notes"})


class GroupRequest(_Request):
    """Several generations drawn as one batch; the outcome has a part for each."""

    kind: Literal["group"] = "group"
    requests: tuple[GenerateRequest, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _are_alike(self) -> "GroupRequest":
        keys = {batch_key(request) for request in self.requests}
        if len(keys) > 1 or None in keys:
            raise ValueError(
                f"requests of a group may differ only in {', '.join(sorted(MAY_DIFFER))}, and name no LoRA"
            )
        return self


class DecodeRequest(_Request):
    """Turn a saved transparent latent into an RGBA picture."""

    kind: Literal["decode"] = "decode"
    latent: Path
    model: ModelName | None = None


class EncodeRequest(_Request):
    """Turn an RGBA picture into a transparent latent, saved as safetensors."""

    kind: Literal["encode"] = "encode"
    image: Path
    model: ModelName | None = None
    seed: Annotated[int, bounded(0, MAX_SEED, "Seed of the autoencoder's noise")] = 0


class PrepareRequest(_Request):
    """Load a model so that the next request finds it warm."""

    kind: Literal["prepare"] = "prepare"
    model: ModelName | None = None
    task: Task = Task.TRANSPARENT


class UnloadRequest(_Request):
    """Drop cached models and give their memory back; all of them when no model is named."""

    kind: Literal["unload"] = "unload"
    model: ModelName | None = None


class StatusRequest(_Request):
    """Ask what the engine runs on and what it holds."""

    kind: Literal["status"] = "status"


Request = (
    GenerateRequest | GroupRequest | DecodeRequest | EncodeRequest | PrepareRequest | UnloadRequest | StatusRequest
)


def files_of(request: Request) -> tuple[Path, ...]:
    """The files that a request reads."""
    match request:
        case GenerateRequest():
            return tuple(request.pictures.values())
        case EncodeRequest():
            return (request.image,)
        case DecodeRequest():
            return (request.latent,)
        case _:
            return ()


_ANY: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Discriminator("kind")])

R = TypeVar("R", bound=BaseModel)


def validated(kind: type[R], data: Mapping[str, Any]) -> R:
    """Make a request of `data`.

    Raises:
        InvalidRequest: naming every parameter that is wrong and what it allows.
    """
    try:
        return kind.model_validate(dict(data))
    except ValidationError as error:
        raise InvalidRequest(explain(error)) from None


def any_request(data: Mapping[str, Any]) -> Request:
    """Make whatever request `data["kind"]` names; raises InvalidRequest as `validated` does."""
    try:
        return _ANY.validate_python(dict(data))
    except ValidationError as error:
        raise InvalidRequest(explain(error)) from None


def explain(error: ValidationError) -> str:
    """One line for an agent: each wrong parameter, what was given and what is allowed."""
    parts: list[str] = []
    for item in error.errors()[:MOST_ERRORS]:
        where = ".".join(short(step) for step in item["loc"])
        text, given = item["msg"], item["input"]
        if item["type"] == "value_error":  # our own words, which quote what was given
            text = text.removeprefix("Value error, ")
        elif isinstance(given, str | int | float):
            text += f" (got {quoted(given)})"
        parts.append(f"{where}: {text}" if where else text)
    return "; ".join(parts) + ("" if parts[-1].endswith((".", "?")) else ".")
