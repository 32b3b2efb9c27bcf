"""What can be asked of the engine: the one vocabulary of tools, command line and Python API.

A request is validated the moment it is made, knows no MCP and no model, and pickles.
What it leaves open (`None`) the planner decides (`jobs/planner.py`); a recipe holds the
same fields with nothing left open, and is read as a request again.

    request = validated(GenerateRequest, {"prompt": "a red apple", "seed": 7})
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from layerdiffuse_mcp.api.cells import AS_DRAWN, Cell
from layerdiffuse_mcp.api.control import MAX_CONTROLS, REFERENCE, REFERENCE_MASK, Control, Reference, control_names
from layerdiffuse_mcp.api.detail import Detail
from layerdiffuse_mcp.api.fields import (
    DRAW_SEED,
    MAX_SEED,
    RESIZE_MODE,
    STRENGTH,
    ClipSkip,
    Count,
    Depth,
    DocumentFormat,
    DrawnSize,
    DrawnWith,
    Emphasis,
    FileWords,
    Fit,
    Guidance,
    LayerCount,
    LayerWeight,
    Metadata,
    MethodName,
    ModelName,
    NegativePrompt,
    NoiseSource,
    PictureFormat,
    Prompt,
    Redrawing,
    ResizeMode,
    SamplerName,
    SaveLatent,
    ScheduleName,
    Seed,
    Size,
    SpeedName,
    Steps,
    StopAt,
    Want,
    explain,
    near,
)
from layerdiffuse_mcp.api.lenient import Lenient
from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.families.registry import METHODS, ROUTES, families_for
from layerdiffuse_mcp.families.spec import Role, Task
from layerdiffuse_mcp.wording import counted

MAX_SUBJECTS = 64
"""Of a set."""
LAYERS, MOST_LAYERS = 4, 64
"""That a picture is taken apart into: unless more are asked for, and at most."""
LONGEST_ROUTE = max(map(len, ROUTES.values()))


class _Request(Lenient):
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
    `stages` replaces them all and is what a recipe holds, as is `drawn`.

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
    strength: Redrawing = STRENGTH
    resize_mode: ResizeMode = RESIZE_MODE

    seed: Seed = DRAW_SEED
    count: Count = 1
    width: Size | None = None
    height: Size | None = None
    fit: Fit | None = None
    drawn: DrawnSize | None = None
    detail: Annotated[
        Detail | None,
        Field(
            description="How the result is enlarged and redrawn; on the command line scale and strength, as in 2,0.3"
        ),
    ] = None

    control: Annotated[
        tuple[Control, ...],
        Field(
            max_length=MAX_CONTROLS,
            description="ControlNets that are followed; on the command line as JSON, as in "
            '[{"model": "canny", "image": "house.png", "preprocess": "canny"}]',
        ),
    ] = ()
    reference: Annotated[
        Reference | None,
        Field(
            description="A picture whose subject or style is taken up, by an IP-Adapter; on the command line as JSON, "
            'as in {"model": "ip-adapter-plus_sd15", "image": "cat.png"}'
        ),
    ] = None

    method: MethodName | None = None
    speed: SpeedName | None = None
    sampler: SamplerName | None = None
    schedule: ScheduleName | None = None
    steps: Steps | None = None
    guidance_scale: Guidance | None = None
    stop_at: StopAt | None = None
    layer_weight: LayerWeight | None = None
    stages: Annotated[tuple[Stage, ...] | None, Field(min_length=1, max_length=LONGEST_ROUTE)] = None

    layers: LayerCount = LAYERS
    depth: Depth = 1
    document: DocumentFormat = "ora"

    clip_skip: ClipSkip | None = None
    emphasis: Emphasis = "Original"
    noise_source: NoiseSource = "nvidia"
    want: Want = ()
    save_latent: SaveLatent = False
    name: FileWords = ""
    format: PictureFormat = "png"
    metadata: Metadata = "full"
    notes: Annotated[tuple[str, ...], Field(description="What was decided before; the outcome's warnings say it")] = ()
    drawn_with: DrawnWith | None = None

    @property
    def pictures(self) -> dict[str, Path]:
        """The pictures that it starts from, by the name of their field or layer; the first gives the shape."""
        controls = zip(control_names(len(self.control)), (one.image for one in self.control), strict=True)
        files = {"image": self.image, **self.inputs, "mask": self.mask, **dict(controls)}
        if self.reference is not None:
            files |= {REFERENCE: self.reference.image, REFERENCE_MASK: self.reference.mask}
        return {name: path for name, path in files.items() if path is not None}

    @property
    def kept(self) -> bool:
        """Whether the picture to edit is not drawn anew before it is enlarged."""
        return self.image is not None and self.strength == 0

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> "GenerateRequest":
        if self.kept and self.detail is None:
            raise ValueError("strength 0 changes nothing of image: choose more, or give detail to enlarge it")
        if not self.prompt.strip() and not any(text.strip() for text in self.layer_prompts.values()):
            raise ValueError("prompt is empty: say what to draw, for example 'a red apple'")
        if self.layers**self.depth > MOST_LAYERS:
            raise ValueError(
                f"{self.layers} layers at depth {self.depth} are {self.layers**self.depth}: at most {MOST_LAYERS} are "
                "made, so choose fewer layers or less depth"
            )
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


def apart(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a request to take a picture apart, by the default model of the family that can if none is named."""
    return {"model": families_for(Task.DECOMPOSE)[0], **fields, "task": Task.DECOMPOSE}


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


class DecodeRequest(_Request):
    """Turn a saved transparent latent into an RGBA picture."""

    kind: Literal["decode"] = "decode"
    latent: Path
    model: ModelName | None = None
    name: FileWords = ""
    format: PictureFormat = "png"


class EncodeRequest(_Request):
    """Turn an RGBA picture into a transparent latent, saved as safetensors."""

    kind: Literal["encode"] = "encode"
    image: Path
    model: ModelName | None = None
    name: FileWords = ""


class PrepareRequest(_Request):
    """Load a model so that the next request finds it warm."""

    kind: Literal["prepare"] = "prepare"
    model: ModelName | None = None
    task: Task = Task.TRANSPARENT


class SetRequest(_Request):
    """Draw pictures of one canvas, one a subject (`api/sets.py` makes one of words)."""

    kind: Literal["set"] = "set"
    subjects: Annotated[tuple[str, ...], Field(min_length=1, max_length=MAX_SUBJECTS)]
    pictures: Annotated[tuple[GenerateRequest, ...], Field(min_length=1, max_length=MAX_SUBJECTS)]
    cell: Cell = AS_DRAWN
    sheet: bool = True
    name: FileWords = ""

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> "SetRequest":
        if len(self.subjects) != len(self.pictures):
            numbers = counted(len(self.subjects), "subject"), counted(len(self.pictures), "picture")
            raise ValueError(f"{' and '.join(numbers)}: each needs the other")
        if any(picture.count != 1 or picture.image or picture.inputs for picture in self.pictures):
            raise ValueError("each subject of a set is drawn once, and from no picture")
        return self


Request = GenerateRequest | SetRequest | DecodeRequest | EncodeRequest | PrepareRequest


def files_of(request: Request) -> tuple[Path, ...]:
    """The files that a request reads."""
    match request:
        case GenerateRequest():
            return tuple(request.pictures.values())
        case SetRequest():
            return tuple(dict.fromkeys(path for picture in request.pictures for path in picture.pictures.values()))
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
