"""From a request to its plan: everything left open is decided here, and nowhere else.

The plan is a `GenerateRequest` again, with a seed, a size and every stage's settings. Running a plan
needs no more decisions, and the recipe inside a picture is the plan that drew it.
"""

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.methods import METHODS, ROUTES, Family, Method, Role, families_for
from layerdiffuse_mcp.requests import (
    DRAW_SEED,
    MAX_COUNT,
    MAX_SEED,
    MAX_SIZE,
    MIN_SIZE,
    GenerateRequest,
    Stage,
    can_replace,
    validated,
)

AUTOMATIC = "Automatic"
SIZE_STEP = 64
FRAMES_AT_MOST = max(method.frames for method in METHODS.values())


def resolve(
    request: GenerateRequest,
    family: Family,
    native_size: int,
    picture_size: tuple[int, int] | None = None,
    advice: Mapping[str, Any] | None = None,
) -> GenerateRequest:
    """Decide whatever `request` leaves open.

    Args:
        family: of the base model.
        native_size: side in pixels of the pictures that the base was trained on.
        picture_size: width and height of the first picture given, whose shape the result takes by default.
        advice: what the base itself advises (fields of `methods.Advice`); it wins over the method's advice.

    Raises:
        InvalidRequest: the family cannot do the task, a picture the task starts from is missing, or the seeds of
            all results pass the largest.
    """
    stages = request.stages or tuple(_stage(method, request, advice or {}) for method in methods_of(request, family))
    _check_family([METHODS[stage.method] for stage in stages], family)
    _check_inputs(request, [METHODS[stage.method] for stage in stages])
    seed = draw_seed() if request.seed == DRAW_SEED else request.seed
    if (last := seed + (request.count - 1) * _frames(stages)) > MAX_SEED:
        raise InvalidRequest(
            f"The last of {request.count} results would have the seed {last}, and the largest is {MAX_SEED}: "
            "choose a smaller seed or a smaller count."
        )
    width, height = fit(picture_size or (native_size, native_size), native_size)
    left_open = request.model_copy(
        update={name: None for name in Stage.model_fields if name in GenerateRequest.model_fields}
    )
    return left_open.model_copy(
        update={
            "stages": stages,
            "seed": seed,
            "width": request.width or width,
            "height": request.height or height,
        }
    )


def seeds(request: GenerateRequest) -> list[int]:
    """The seed of each result: those of its frames follow it, as in the reference."""
    frames = _frames(request.stages or ())
    return [request.seed + index * frames for index in range(request.count)]


def _frames(stages: Sequence[Stage]) -> int:
    """How many seeds a result of these stages takes."""
    return max(METHODS[stage.method].frames for stage in stages)


def draw_seed() -> int:
    """A seed for a request that names none."""
    return secrets.randbelow(MAX_SEED - MAX_COUNT * FRAMES_AT_MOST)


def fit(size: tuple[int, int], native_size: int) -> tuple[int, int]:
    """The size of about native_size^2 pixels with the shape of `size`, in steps of 64 pixels."""
    scale = native_size / math.sqrt(size[0] * size[1])
    width, height = (min(MAX_SIZE, max(MIN_SIZE, round(side * scale / SIZE_STEP) * SIZE_STEP)) for side in size)
    return width, height


def methods_of(request: GenerateRequest, family: Family) -> tuple[str, ...]:
    """The methods that fulfil a request with a base of that family, in the order in which they run.

    Raises:
        InvalidRequest: the family cannot do the task, or the method belongs to another.
    """
    if request.stages:
        return tuple(stage.method for stage in request.stages)
    route = ROUTES.get((request.task, family))
    if route is None:
        able = " or ".join(families_for(request.task))
        raise InvalidRequest(
            f"A {family} model cannot do the task {request.task.value}: it has no layer file for it. "
            f"Name a model of the family {able}; list_models shows them."
        )
    if request.method is None:
        return route
    chosen = METHODS[request.method]
    _check_family([chosen], family)
    return tuple(chosen.id if can_replace(chosen.id, stage) else stage for stage in route)


def _stage(method_id: str, request: GenerateRequest, base_advice: Mapping[str, Any]) -> Stage:
    asked = {name: value for name in Stage.model_fields if (value := getattr(request, name, None)) is not None}
    advised = {**asdict(METHODS[method_id].advice), **base_advice}
    if "sampler" in asked:
        advised["schedule"] = AUTOMATIC  # the advised schedule goes with the advised sampler
    return validated(Stage, {**advised, **asked, "method": method_id})


def _check_family(methods: Sequence[Method], family: Family) -> None:
    for method in methods:
        if method.family != family:
            raise InvalidRequest(
                f"The method {method.id} belongs to {method.family} models and the model is {family}. "
                f"Name a {method.family} model, or leave the method open."
            )


def _check_inputs(request: GenerateRequest, methods: Sequence[Method]) -> None:
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
