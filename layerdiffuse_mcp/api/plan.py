"""Plans: what an engine is asked to do, with nothing left open.

A plan is a value: frozen, it pickles, and its JSON makes it again. The planner (`jobs/planner.py`) makes one of a
request before anything waits; batch keys compare plans, and the recipe inside a picture is the plan that drew it.
Pictures are named in it by their content's SHA-256; the files behind go beside it, as `inputs` (SHA-256 -> path).

    plan = make_plan(GenerateRequest(prompt="a red apple"), family, model="pocket", native_size=128)
    any_task(plan.model_dump(mode="json")) == plan
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, TypeAdapter, model_validator

from layerdiffuse_mcp.api.detail import Detail, Tiling
from layerdiffuse_mcp.api.detail import planned as planned_detail
from layerdiffuse_mcp.api.fields import DRAW_SEED, MAX_COUNT, MAX_SEED
from layerdiffuse_mcp.api.finish import Finish
from layerdiffuse_mcp.api.given import (
    GivenPicture,
    PlannedControl,
    PlannedReference,
    pictures_beside,
    planned_controls,
    planned_reference,
)
from layerdiffuse_mcp.api.plan_checks import DELIVERY, check_family, check_plan, stage_doubts
from layerdiffuse_mcp.api.requests import LAYERS, GenerateRequest, Stage, can_replace, validated
from layerdiffuse_mcp.api.sizes import AS_IS, STRETCH, Size, Sizing, doubts, fit, sized, within
from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.families import spec
from layerdiffuse_mcp.families.registry import METHODS, ROUTES, families_for
from layerdiffuse_mcp.families.spec import FamilySpec, Role

LONGEST = 8
"""Times the shorter side, of a picture that is taken apart."""
AUTOMATIC = "Automatic"
FRAMES_AT_MOST = max(method.frames for method in METHODS.values())
MAY_DIFFER = frozenset({"prompt", "negative_prompt", "seed", "count", "notes", "unknown_subject"}) | DELIVERY
"""In what plans may differ that are drawn as one batch."""


class _Plan(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PlannedLora(_Plan):
    """A LoRA by its name in the catalogue, and its strength on the denoising network and on the text encoder."""

    name: str
    strength: float
    text_strength: float


class DrawPlan(_Plan):
    """Draw `count` results. Sizes are in pixels; `stages` run in order, each with all of its settings.
    `width` and `height` are the result's; where another size is `drawn`, it is fitted to that by `fit`. With `detail`
    all that is drawn is enlarged and redrawn, and the result `detail.scale` times as large (`as_detailed`).

    `prompt` and `layer_prompts` still hold their `<lora:...>` tags, for the recipe; `loras` is what they mean,
    `inversions` are the textual inversions that the prompts name.
    Model, methods and LoRAs are named, not hashed: to hash a base takes half a minute, and its file may be replaced
    while the plan waits. A recipe is the plan and the SHA-256 of the files that it was drawn with, as the engine read
    them. `drawn_with` is what a recipe said of its files, `notes` what was decided before: the outcome's warnings say
    both. Of an `unknown_subject` the base has learnt no word, which makes a cut-out doubtful.
    """

    kind: Literal["draw"] = "draw"
    task: spec.Task
    model: str
    family: str
    prompt: str
    negative_prompt: str = ""
    layer_prompts: dict[Role, str] = Field(default_factory=dict)
    loras: tuple[PlannedLora, ...] = ()
    inversions: tuple[str, ...] = ()
    inputs: dict[Role, GivenPicture] = Field(default_factory=dict)
    image: GivenPicture | None = None
    mask: GivenPicture | None = None
    control: tuple[PlannedControl, ...] = ()
    reference: PlannedReference | None = None
    strength: float
    resize_mode: str
    seed: int
    count: int
    width: int
    height: int
    fit: str = AS_IS
    drawn: tuple[int, int] | None = None
    detail: Detail | None = None
    tiling: Annotated[Tiling | None, Field(description="Of a redrawing: set in `as_detailed` alone")] = None
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]
    layers: int = LAYERS
    depth: int = 1
    clip_skip: int | None = None
    emphasis: str
    noise_source: str
    want: tuple[Role, ...] = ()
    save_latent: bool = False
    name: str = ""
    format: str = "png"
    metadata: str = "full"
    notes: tuple[str, ...] = ()
    unknown_subject: bool = False
    drawn_with: dict[str, str | None] | None = None

    @property
    def pictures(self) -> dict[str, GivenPicture]:
        """The pictures that it starts from, by the name of their field or layer; the first gives the shape."""
        given = {"image": self.image, **self.inputs, "mask": self.mask, **pictures_beside(self.control, self.reference)}
        return {name: picture for name, picture in given.items() if picture is not None}

    @property
    def as_drawn(self) -> "DrawPlan":
        """The same at the size that is drawn, as drawers take it."""
        if self.drawn is None:
            return self
        width, height = self.drawn
        return self.model_copy(update={"width": width, "height": height, "drawn": None})

    @property
    def as_detailed(self) -> "DrawPlan | None":
        """The redrawing that follows, as drawers take it; None without `detail`."""
        if self.detail is None:
            return None
        drawn = self.as_drawn
        width, height = self.detail.scaled((drawn.width, drawn.height))
        redrawn = {"width": width, "height": height, "strength": self.detail.strength, "tiling": self.detail.tiling}
        return drawn.model_copy(update={**redrawn, "detail": None})

    @property
    def result(self) -> Size:
        """Width and height of the result."""
        size = self.width, self.height
        return self.detail.scaled(size) if self.detail else size

    @property
    def redraws(self) -> bool:
        """Whether its stages begin from pictures, by `strength`."""
        return (self.image is not None and not self.reads) or self.tiling is not None

    @property
    def reads(self) -> int:
        """How many pictures the one to edit counts as, where the model reads it."""
        return max(METHODS[method].reads for method in self.methods) if self.image else 0

    @property
    def kept(self) -> bool:
        """Whether the picture to edit is enlarged as it is: no stage is run before that."""
        return self.image is not None and self.strength == 0

    @property
    def controls(self) -> tuple[str, ...]:
        """The ControlNets that it names, each once."""
        return tuple(dict.fromkeys(one.model for one in self.control))

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods of its stages, in the order in which they run."""
        return tuple(stage.method for stage in self.stages)


class GroupPlan(_Plan):
    """Several drawings as one batch; the outcome has a part for each."""

    kind: Literal["group"] = "group"
    plans: tuple[DrawPlan, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _are_alike(self) -> "GroupPlan":
        if len({batch_key(plan) for plan in self.plans}) > 1:
            raise ValueError(f"plans of a group may differ only in {', '.join(sorted(MAY_DIFFER))}")
        return self


class DecodePlan(_Plan):
    """Turn a saved transparent latent into an RGBA picture; `plain`: into what the autoencoder sees in it."""

    kind: Literal["decode"] = "decode"
    model: str
    latent: GivenPicture
    plain: bool = False
    name: str = ""
    format: str = "png"


class EncodePlan(_Plan):
    """Turn an RGBA picture into a transparent latent."""

    kind: Literal["encode"] = "encode"
    model: str
    image: GivenPicture
    name: str = ""


class PreparePlan(_Plan):
    """Load a model whose files for `methods` are here."""

    kind: Literal["prepare"] = "prepare"
    model: str
    methods: tuple[str, ...] = ()


class Download(_Plan):
    """Fetch what a model lacks for its `methods`, or a LoRA, which has none. No task: it needs no engine."""

    model: str
    methods: tuple[str, ...] = ()


Task = DrawPlan | GroupPlan | DecodePlan | EncodePlan | PreparePlan
Inputs = Mapping[str, Path]
"""Where the content of given pictures lies: a file by its SHA-256."""

_TASKS: TypeAdapter[Task] = TypeAdapter(Annotated[Task, Discriminator("kind")])


@dataclass(frozen=True)
class Planned:
    """A request as it is handed to the queue: its tasks in order, and the files that they start from.

    `downloads` come first, beside the queue (`hub/download.py`); a request for a LoRA alone has no task after them.
    `finish` is what becomes of the pictures before they are written.
    """

    tasks: tuple[Task, ...]
    inputs: Inputs = field(default_factory=dict[str, Path])
    downloads: tuple[Download, ...] = ()
    finish: Finish | None = None


def any_task(data: Mapping[str, Any]) -> Task:
    """The task whose JSON this is; pydantic's ValidationError where it is none."""
    return _TASKS.validate_python(dict(data))


def pixels_of(tasks: Sequence[Task]) -> int:
    """How many pixels are drawn, as far as tasks draw any; of what is enlarged those of the result."""
    results = ((plan.as_drawn.result, plan.count) for plan in tasks if isinstance(plan, DrawPlan))
    return sum(width * height * count for (width, height), count in results)


def batch_key(task: Task) -> str | None:
    """Equal for plans that can be drawn as one batch; None for a task that cannot share one at all."""
    return task.model_dump_json(exclude={*MAY_DIFFER}) if isinstance(task, DrawPlan) else None


def make_plan(
    request: GenerateRequest,
    family: FamilySpec,
    *,
    model: str,
    native_size: int,
    pictures: Mapping[str, GivenPicture] | None = None,
    picture_size: tuple[int, int] | None = None,
    advice: Sequence[Mapping[str, Any]] = (),
    loras: tuple[PlannedLora, ...] = (),
) -> DrawPlan:
    """Decide whatever `request` leaves open.

    Args:
        family: of the base model `model`.
        native_size: side in pixels of the pictures that the base was trained on.
        pictures: what the request's pictures hold, by the names of `request.pictures`.
        picture_size: width and height of the first picture given, whose shape the result takes by default.
        advice: what the base, then each LoRA advises (fields of `spec.Advice`): a later one wins over an earlier one,
            all over the method's advice, and the request over all.

    Raises:
        InvalidRequest: the family cannot do the task, an option does not act on it, a layer that has a prompt is not
            drawn, a picture is missing or one too many, or the seeds of all results pass the largest.
    """
    stages = request.stages or tuple(_stage(method, request, advice) for method in methods_of(request, family.id))
    methods = [METHODS[stage.method] for stage in stages]
    check_plan(request, family, methods, stages)
    seed = draw_seed() if request.seed == DRAW_SEED else request.seed
    if (last := seed + (request.count - 1) * _frames(stages)) > MAX_SEED:
        raise InvalidRequest(
            f"The last of {request.count} results would have the seed {last}, and the largest is {MAX_SEED}: "
            "choose a smaller seed or a smaller count."
        )
    asked, sizing = _size(request, family, native_size, picture_size)
    drawn = sizing.drawn or asked
    detail = request.detail and planned_detail(request.detail, drawn, asked, native_size, family.latent.downscale)
    far = () if request.kept or methods[0].takes_apart else doubts(asked, sizing, native_size, model, family.near)
    given = dict(pictures or {})
    return DrawPlan(
        task=request.task,
        model=model,
        family=family.id,
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        layer_prompts=request.layer_prompts,
        loras=loras,
        inputs={role: given[role] for role in request.inputs},
        image=given.get("image"),
        mask=given.get("mask"),
        control=planned_controls(request.control, given),
        reference=planned_reference(request.reference, given),
        strength=request.strength,
        resize_mode=request.resize_mode,
        seed=seed,
        count=request.count,
        width=asked[0],
        height=asked[1],
        fit=sizing.fit,
        drawn=sizing.drawn,
        detail=detail,
        stages=stages,
        layers=request.layers,
        depth=request.depth,
        clip_skip=request.clip_skip,
        emphasis=request.emphasis,
        noise_source=request.noise_source,
        want=request.want,
        save_latent=request.save_latent,
        name=request.name,
        format=request.format,
        metadata=request.metadata,
        notes=(*request.notes, *stage_doubts(request, stages), *far),
        drawn_with=request.drawn_with,
    )


def _size(request: GenerateRequest, family: FamilySpec, native_size: int, given: Size | None) -> tuple[Size, Sizing]:
    """The result's size, and how it comes to it; `given`: that of the first picture, whose shape it has by default."""
    methods = [METHODS[name] for name in methods_of(request, family.id)]
    own, step = given or (native_size, native_size), family.size_step
    apart = methods[0].takes_apart
    width, height = within(own) if apart else own if request.kept else fit(own, native_size, step)
    asked = request.width or width, request.height or height
    if request.kept:
        return asked, Sizing()
    if apart and max(own) > LONGEST * min(own):
        raise InvalidRequest(
            f"The picture has {own[0]}x{own[1]} pixels, and one that is taken apart may be {LONGEST} times as long as "
            "wide, or as high. Give a part of it."
        )
    if apart:  # the pipeline decides by the picture's shape alone, and so does `fit`
        return asked, sized(asked, STRETCH, fit(own, family.native_size, step), native_size, step, opaque=True)
    opaque = any(role != method.transparent for method in methods for role in method.outputs)
    how = request.fit if request.width or request.height else AS_IS
    step = family.latent.downscale
    return asked, sized(asked, how, request.drawn, native_size, step, opaque=opaque, near=family.near)


def seeds(plan: DrawPlan) -> list[int]:
    """The seed of each result: those of its frames follow it, as in the reference."""
    frames = _frames(plan.stages)
    return [plan.seed + index * frames for index in range(plan.count)]


def _frames(stages: Sequence[Stage]) -> int:
    """How many seeds a result of these stages takes."""
    return max(METHODS[stage.method].frames for stage in stages)


def draw_seed() -> int:
    """A seed for a request that names none."""
    return secrets.randbelow(MAX_SEED - MAX_COUNT * FRAMES_AT_MOST)


def methods_of(request: GenerateRequest, family: str) -> tuple[str, ...]:
    """The methods that fulfil a request with a base of that family, in the order in which they run.

    Raises:
        InvalidRequest: the family cannot do the task, or the method belongs to another.
    """
    if request.stages:
        return tuple(stage.method for stage in request.stages)
    return route_of(request.task, family, request.method)


def route_of(task: spec.Task, family: str, method: str | None = None) -> tuple[str, ...]:
    """The methods by which a family does a task, one of them replaced by `method`; raises as `methods_of` does."""
    route = ROUTES.get((task, family))
    if route is None:
        able = " or ".join(families_for(task))
        raise InvalidRequest(
            f"A {family} model cannot do the task {task.value}: it has no layer file for it. "
            f"Name a model of the family {able}; list_models shows them."
        )
    if method is None:
        return route
    chosen = METHODS[method]
    check_family([chosen], family)
    return tuple(chosen.id if can_replace(chosen.id, stage) else stage for stage in route)


def _stage(method_id: str, request: GenerateRequest, advice: Sequence[Mapping[str, Any]]) -> Stage:
    asked = {name: value for name in Stage.model_fields if (value := getattr(request, name, None)) is not None}
    advised = asdict(METHODS[method_id].advice)
    for more in advice:
        advised |= more
    if "sampler" in asked:
        advised["schedule"] = AUTOMATIC  # the advised schedule goes with the advised sampler
    return validated(Stage, {**advised, **asked, "method": method_id})
