"""What a plan is refused for: options that would change nothing, pictures that are missing or one too many.

    check_plan(request, family, methods, stages)        # raises InvalidRequest, or returns None
    stage_doubts(request, stages)                       # what to say of settings that are as they were asked for

`api/plan.py` asks all of it before it decides anything.
"""

from collections.abc import Sequence

from layerdiffuse_mcp.api.choices import encoding_steps
from layerdiffuse_mcp.api.requests import GenerateRequest, Stage
from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.families.registry import METHODS
from layerdiffuse_mcp.families.spec import FamilySpec, LayerMethod, Role
from layerdiffuse_mcp.wording import counted

DELIVERY = frozenset({"want", "save_latent", "name", "format", "metadata"})
"""How the files of a result are made, which changes none of its pixels."""
ALWAYS_ACT = DELIVERY | {
    "kind", "task", "model", "prompt", "inputs", "seed", "count", "width", "height", "fit", "drawn", "stages",
    "notes", "drawn_with",
}  # fmt: skip
"""Fields of a request that mean something whatever the family; each of the others stands in `FamilySpec.accepts`."""


def check_plan(
    request: GenerateRequest, family: FamilySpec, methods: Sequence[LayerMethod], stages: Sequence[Stage]
) -> None:
    """Refuse what cannot be drawn as it was asked for, by its `methods` in these `stages`."""
    check_family(methods, family.id)
    check_options(request, family, methods)
    check_steps(stages, family)
    check_controls(request, stages)
    check_inputs(request, methods)


def check_family(methods: Sequence[LayerMethod], family: str) -> None:
    """Refuse methods of another family."""
    for method in methods:
        if method.family != family:
            raise InvalidRequest(
                f"The method {method.id} belongs to {method.family} models and the model is {family}. "
                f"Name a {method.family} model, or leave the method open."
            )


def check_options(request: GenerateRequest, family: FamilySpec, methods: Sequence[LayerMethod]) -> None:
    """Refuse what was asked for and would change nothing."""
    options = GenerateRequest.model_fields.keys() - ALWAYS_ACT
    acting = options & family.accepts
    if not any(method.strength_acts for method in methods):
        acting -= {"layer_weight"}
    defaults = {name: GenerateRequest.model_fields[name].get_default(call_default_factory=True) for name in options}
    given = {name for name in request.model_fields_set & options if getattr(request, name) != defaults[name]}
    if idle := sorted(given - acting):
        raise InvalidRequest(
            f"{' and '.join(idle)} would change nothing: {family.title} models do not act on it. Leave it out. "
            f"Options that act here: {', '.join(sorted(acting))}."
        )
    _check_layers(request, methods)
    without_picture = {"strength": request.image, "resize_mode": request.pictures or None}
    if idle := sorted(given & {name for name, picture in without_picture.items() if picture is None}):
        raise InvalidRequest(f"{' and '.join(idle)} would change nothing without a given picture. Leave it out.")


def _check_layers(request: GenerateRequest, methods: Sequence[LayerMethod]) -> None:
    """Refuse prompts of layers, and wishes for layers, that are not drawn; a model that names its own may draw any."""
    drawn = drawn_roles(methods)
    controlled = {role for one in request.control for role in one.frames}
    for what, roles in {"prompt": {*request.layer_prompts}, "wish": {*request.want}, "control": controlled}.items():
        if drawn and (idle := sorted(roles - drawn)):
            raise InvalidRequest(
                f"The task {request.task.value} draws {' and '.join(sorted(drawn))}, and no {' and no '.join(idle)}: "
                f"leave out {f'that {what}' if len(idle) == 1 else f'those {what}s'}."
            )


def drawn_roles(methods: Sequence[LayerMethod]) -> set[Role]:
    """The layers that methods draw; none where the model names them itself."""
    return {role for method in methods for role in method.outputs}


def stage_doubts(request: GenerateRequest, stages: Sequence[Stage]) -> tuple[str, ...]:
    """What to say of samplers that leave artefacts with a method, and of a negative prompt that is not heard."""
    chosen = ((METHODS[stage.method], stage.sampler) for stage in stages)
    samplers = tuple(
        f"{sampler} leaves artefacts with {method.id}: {method.advice.sampler} is advised."
        for method, sampler in chosen
        if sampler.startswith(method.avoid_samplers)
    )
    if not request.negative_prompt.strip() or any(stage.guidance_scale > 1 for stage in stages):
        return samplers
    unheard = "The negative prompt was not heard, as guidance_scale is not above 1. Raise it, or leave the prompt out."
    return (*samplers, unheard)


def check_steps(stages: Sequence[Stage], family: FamilySpec) -> None:
    """Refuse fewer steps than the family has a schedule for."""
    if min(stage.steps for stage in stages) < family.least_steps:
        raise InvalidRequest(f"{family.title} models draw in {family.least_steps} steps or more. Set steps so.")


def check_controls(request: GenerateRequest, stages: Sequence[Stage]) -> None:
    """Refuse a control within whose start and end no whole step lies of those that it may act in."""
    redrawn = () if request.detail is None else (request.detail.strength,)
    strengths = () if request.kept else (None if request.image is None else request.strength,)
    for number, one in enumerate(request.control):
        drawn = [stage for stage in stages if not one.frames or {*one.frames} & {*METHODS[stage.method].outputs}]
        runs = {_steps(stage.steps, strength) for stage in drawn for strength in (*strengths, *redrawn)}
        if runs and not any(one.acts(step, steps) for steps in runs for step in range(steps)):
            raise InvalidRequest(
                f"control.{number} would act in none of the {counted(max(runs), 'step')}: no whole step lies between "
                f"its start {one.start:g} and its end {one.end:g}. Set more steps, or set start and end further apart."
            )


def _steps(steps: int, strength: float | None) -> int:
    """How many of so many steps are made: with a strength the last ones, as img2img begins a step further up."""
    return steps if strength is None else encoding_steps(steps, strength) + 1


def check_inputs(request: GenerateRequest, methods: Sequence[LayerMethod]) -> None:
    """Refuse a request that gives not just the pictures that its methods start from."""
    made: set[Role] = set()
    needed: set[Role] = set()
    for method in methods:
        needed.update(role for role in method.inputs if role not in made)
        made.update(method.outputs)
    missing = [role for role in needed if role not in request.inputs]
    if missing:
        raise InvalidRequest(
            f"The task {request.task.value} starts from a {' and a '.join(sorted(needed))} picture, and no "
            f"{' and no '.join(missing)} is given. Give its path."
        )
    surplus = [role for role in request.inputs if role not in needed]
    if surplus:
        raise InvalidRequest(
            f"The task {request.task.value} takes no {' and no '.join(surplus)} picture"
            + (f", only {' and '.join(sorted(needed))}." if needed else ".")
        )
