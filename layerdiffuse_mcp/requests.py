"""What can be asked of the engine: the one vocabulary of tools, command line and Python API.

A request is validated the moment it is made, knows no MCP and no model, and pickles.
What it leaves open (`None`) the engine fills from the method's advice and the model's
native size; the outcome's recipe is the same request with nothing left open, so that
validating a recipe gives a request that draws the same picture again.

    request = validated(GenerateRequest, {"prompt": "a red apple", "seed": 7})
"""

import difflib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from layerdiffuse_mcp.choices import EMPHASIS, NOISE_SOURCES, RESIZE_MODES, SAMPLERS, SCHEDULES
from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.methods import METHODS, ROUTES, Role, Task, families_for

MIN_SIZE, MAX_SIZE = 64, 2048
MAX_STEPS = 150
MAX_COUNT = 8
MAX_SEED = 2**32 - 1
MAX_PROMPT_CHARACTERS = 20_000
DRAW_SEED = -1


def near(name: str, names: Collection[str]) -> str:
    """A sentence that lists `names`, the nearest to `name` first when there are many."""
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    if len(names) > 6 and close:
        return f"Did you mean {', '.join(close)}? Allowed: {', '.join(names)}."
    return f"Allowed: {', '.join(names)}."


def one_of(names: Collection[str], what: str) -> Any:
    """A string type whose schema is an enum of `names` and whose error lists them."""

    def check(value: str) -> str:
        if value not in names:
            raise ValueError(f"unknown {what} {value!r}. {near(value, names)}")
        return value

    return Annotated[str, AfterValidator(check), WithJsonSchema({"type": "string", "enum": list(names)})]


SamplerName = one_of(tuple(SAMPLERS), "sampler")
ScheduleName = one_of(tuple(SCHEDULES), "schedule")
MethodName = one_of(tuple(METHODS), "method")
ResizeMode = one_of(RESIZE_MODES, "resize mode")
NoiseSource = one_of(NOISE_SOURCES, "noise source")
Emphasis = one_of(EMPHASIS, "emphasis")

Steps = Annotated[int, Field(ge=1, le=MAX_STEPS)]
Guidance = Annotated[float, Field(ge=1, le=30, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Strength = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
Size = Annotated[int, Field(ge=MIN_SIZE, le=MAX_SIZE)]
Seed = Annotated[int, Field(ge=DRAW_SEED, le=MAX_SEED)]
Prompt = Annotated[str, Field(max_length=MAX_PROMPT_CHARACTERS)]


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Stage(_Request):
    """One method of a route with all its settings made explicit."""

    method: MethodName
    sampler: SamplerName
    schedule: ScheduleName
    steps: Steps
    guidance_scale: Guidance
    stop_at: Share = 1.0
    layer_weight: Strength = 1.0


class GenerateRequest(_Request):
    """Draw pictures for a task.

    The flat settings (`method` ... `layer_weight`) apply to every stage of the task's route;
    `stages` replaces them all and is what a recipe holds.

    Picture sizes are in pixels; seeds draw `count` results as seed, seed + 1, ...
    (SD1.5 methods with several frames use one further seed a frame).
    """

    kind: Literal["generate"] = "generate"
    task: Task = Task.TRANSPARENT
    model: str | None = None

    prompt: Prompt = ""
    negative_prompt: Prompt = ""
    layer_prompts: dict[Role, Prompt] = Field(default_factory=dict)

    inputs: dict[Role, Path] = Field(default_factory=dict)
    image: Path | None = None
    mask: Path | None = None
    strength: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 0.6
    resize_mode: ResizeMode = "Crop and Resize"

    seed: Seed = DRAW_SEED
    count: Annotated[int, Field(ge=1, le=MAX_COUNT)] = 1
    width: Size | None = None
    height: Size | None = None

    method: MethodName | None = None
    sampler: SamplerName | None = None
    schedule: ScheduleName | None = None
    steps: Steps | None = None
    guidance_scale: Guidance | None = None
    stop_at: Share | None = None
    layer_weight: Strength | None = None
    stages: tuple[Stage, ...] | None = None

    clip_skip: Annotated[int, Field(ge=1, le=12)] | None = None
    emphasis: Emphasis = "Original"
    noise_source: NoiseSource = "nvidia"
    save_latent: bool = False

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
        return self

    def _method_can_do_the_task(self, method: str) -> None:
        alternatives = [m.id for m in METHODS.values() if can_do(m.id, self.task)]
        if method not in alternatives:
            raise ValueError(f"method {method} cannot do the task {self.task.value}. {near(method, alternatives)}")


def can_do(method: str, task: Task) -> bool:
    """Whether `method` has a place in one of the task's routes.

    A route's method may be replaced by one of the same family with the same inputs and outputs.
    """
    row = METHODS[method]
    return any(
        (row.inputs, row.outputs) == (METHODS[stage].inputs, METHODS[stage].outputs)
        for family in families_for(task)
        if family == row.family
        for stage in ROUTES[task, family]
    )


class DecodeRequest(_Request):
    """Turn a saved transparent latent into an RGBA picture."""

    kind: Literal["decode"] = "decode"
    latent: Path
    model: str | None = None


class EncodeRequest(_Request):
    """Turn an RGBA picture into a transparent latent, saved as safetensors."""

    kind: Literal["encode"] = "encode"
    image: Path
    model: str | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0


class PrepareRequest(_Request):
    """Load a model so that the next request finds it warm."""

    kind: Literal["prepare"] = "prepare"
    model: str | None = None
    task: Task = Task.TRANSPARENT


class UnloadRequest(_Request):
    """Drop cached models and give their memory back; all of them when no model is named."""

    kind: Literal["unload"] = "unload"
    model: str | None = None


class StatusRequest(_Request):
    """Ask what the engine runs on and what it holds."""

    kind: Literal["status"] = "status"


Request = GenerateRequest | DecodeRequest | EncodeRequest | PrepareRequest | UnloadRequest | StatusRequest
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
    for item in error.errors():
        where = ".".join(str(step) for step in item["loc"])
        text = item["msg"].removeprefix("Value error, ")
        given = item["input"]
        shown = f" (got {given!r})" if isinstance(given, str | int | float) and len(repr(given)) <= 60 else ""
        parts.append(f"{where}: {text}{shown}" if where else text)
    return "; ".join(parts) + ("" if parts[-1].endswith((".", "?")) else ".")
