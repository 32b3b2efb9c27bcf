"""Between requests and the A1111 parameter text: a published recipe becomes a request, a picture tells its own.

    request = request_of(infotext.parse(text))
    text = infotext.format(infotext_of(plan, model_hash="15012c538f"))

The text names no picture files, so a request made of it has none: give `inputs` before it is run. `request_from` is for
texts as people paste them: what they say and this program cannot do is said, not refused.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from layerdiffuse_mcp import __version__
from layerdiffuse_mcp.api.fields import RESIZE_MODE, STRENGTH, near
from layerdiffuse_mcp.api.plan import DrawPlan
from layerdiffuse_mcp.api.requests import GenerateRequest, validated
from layerdiffuse_mcp.api.sizes import AS_IS
from layerdiffuse_mcp.errors import InvalidRequest, ModelNotFound
from layerdiffuse_mcp.families.registry import FAMILIES, METHODS, ROUTES
from layerdiffuse_mcp.families.spec import LayerMethod, Role, Task
from layerdiffuse_mcp.hub import catalog
from layerdiffuse_mcp.recipes.infotext import Infotext
from layerdiffuse_mcp.recipes.recipe import BASE
from layerdiffuse_mcp.settings import Settings
from layerdiffuse_mcp.wording import quoted, short

_BY_FORGE_NAME = {method.forge_name: method for method in METHODS.values() if method.forge_name}
_HASH = re.compile("[0-9a-f]{10,64}")
_NEWER_PREFIX = "(SDXL) "
_NEWER_NOTE = " (need batch size"


def request_of(info: Infotext) -> GenerateRequest:
    """The request that a parameter text describes; what the text leaves out stays open.

    Raises:
        InvalidRequest: a value is out of range, or the layer method is unknown.
    """
    prompts: dict[Role, str | None] = {
        "foreground": info.foreground_prompt,
        "background": info.background_prompt,
        "blended": info.blended_prompt,
    }
    fields: dict[str, Any] = {
        "prompt": info.prompt,
        "negative_prompt": info.negative_prompt,
        "layer_prompts": {role: text for role, text in prompts.items() if text},
        "model": info.model,
        "sampler": info.sampler,
        "schedule": info.schedule,
        "steps": info.steps,
        "guidance_scale": info.guidance_scale,
        "seed": info.seed,
        "width": info.size and info.size[0],
        "height": info.size and info.size[1],
        "clip_skip": info.clip_skip,
        "noise_source": info.noise_source,
        "emphasis": info.emphasis,
        "resize_mode": info.resize_mode,
        "layer_weight": info.layer_weight,
        "stop_at": info.stop_at,
        "strength": info.strength,
    }
    if info.layer_method is not None:
        method = _method(info.layer_method)
        fields |= {"method": method.id, "task": _task(method)}
    return validated(GenerateRequest, {name: value for name, value in fields.items() if value is not None})


def request_from(info: Infotext, changes: Mapping[str, Any], settings: Settings) -> GenerateRequest:
    """The request to draw by a parameter text that somebody pasted, with `changes` to its fields.

    Its `notes` say which fields of the text have no counterpart here, and what else was dropped. The base model is
    looked for by its name, then by its hash.

    Raises:
        InvalidRequest: as of `request_of`.
        ModelNotFound: the text's model is not known here, and the changes name none.
    """
    replaced = {name: None for name in _OF_THE_TEXT & changes.keys()}
    info = replace(info, **replaced, **({"size": None} if "width" in changes else {}))
    fields = request_of(info).model_dump(exclude_unset=True)
    asked = {**fields, **changes}
    if "model" not in changes:
        asked["model"] = _base(info, settings)
        if info.size:  # that very model drew this very size
            asked.setdefault("fit", AS_IS)
        digest = (info.model_hash or "").lower()
        asked["drawn_with"] = {BASE: digest if _HASH.fullmatch(digest) else None}
    family = catalog.find(asked.get("model"), settings).family
    notes = [f"{label}: {short(said)} has no counterpart here and was left out." for label, said in info.other.items()]
    if info.layer_method is None:
        notes.append("The text names no layerdiffusion_method: a transparent picture is drawn.")
    for name, why in _idle(asked, fields.get("prompt"), family).items():
        if name in fields and name not in changes and asked.pop(name) != _USUAL.get(name):
            notes.append(why)
    return validated(GenerateRequest, {**asked, "notes": tuple(notes)})


_OF_THE_TEXT = frozenset({"sampler", "schedule", "steps", "guidance_scale", "seed", "clip_skip", "model", "stop_at"})
"""Fields of a text that need not be right where a change takes their place."""
_USUAL = {"strength": STRENGTH, "resize_mode": RESIZE_MODE, "layer_weight": 1.0}
"""What the extension writes of every drawing: nothing is said of it."""


def _idle(asked: Mapping[str, Any], prompt: str | None, family: str | None) -> dict[str, str]:
    """Fields of a text that do not act on what is asked for, and what to say when one is left out."""
    idle: dict[str, str] = {}
    method = METHODS.get(asked.get("method") or "")
    drawn = method.outputs if method else ("foreground",)
    if asked.get("prompt") != prompt:
        idle["layer_prompts"] = "The text's own prompts for layers were dropped, since the prompt is another."
    elif not {*asked.get("layer_prompts", {})} <= {*drawn}:
        idle["layer_prompts"] = f"The text's own prompts for layers were left out: only {' and '.join(drawn)} is drawn."
    if "image" not in asked:
        idle["strength"] = "Denoising strength acts on a given picture, and there is none: it was left out."
        if "inputs" not in asked:
            idle["resize_mode"] = "layerdiffusion_resize_mode acts on given pictures: it was left out."
    if not _weight_acts(asked.get("method"), family):
        idle["layer_weight"] = "layerdiffusion_weight does not act on this method and was left out."
    return idle


def _weight_acts(method: str | None, family: str | None) -> bool:
    """Whether a layer weight changes anything."""
    if family not in FAMILIES or "layer_weight" not in FAMILIES[family].accepts:
        return False
    return method is None or METHODS[method].strength_acts


def _base(info: Infotext, settings: Settings) -> str | None:
    """The name here of the model that a text names; None, the default one, where it names none."""
    named = [name for name in (info.model, info.model_hash) if name]
    for name in named[1:]:
        with suppress(ModelNotFound):
            return catalog.find(name, settings).name
    try:
        return catalog.find(named[0], settings).name if named else None
    except ModelNotFound as error:
        raise ModelNotFound(f"{error} The parameter text names it; changes.options.model names another.") from None


def infotext_of(
    request: GenerateRequest | DrawPlan, like: Infotext | None = None, *, model_hash: str | None = None
) -> Infotext:
    """The parameter text's fields for a request or a plan.

    What a request does not hold (the program's version, which pictures were given to the extension) is taken from
    `like`, by default from this version of ours. Of a plan with two stages the last is told.
    """
    base = like or Infotext(version=f"layerdiffuse-mcp {__version__}", model_hash=model_hash, layer_enabled=True)
    settings: Any = request.stages[-1] if request.stages else request
    method = METHODS[settings.method] if settings.method else None
    told: dict[str, Any] = {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "model": request.model,
        "sampler": settings.sampler,
        "schedule": settings.schedule,
        "steps": settings.steps,
        "guidance_scale": settings.guidance_scale,
        "seed": request.seed,
        "size": (request.width, request.height) if request.width and request.height else None,
        "clip_skip": request.clip_skip,
        "layer_weight": settings.layer_weight,
        "stop_at": settings.stop_at,
        "foreground_prompt": request.layer_prompts.get("foreground"),
        "background_prompt": request.layer_prompts.get("background"),
        "blended_prompt": request.layer_prompts.get("blended"),
        "strength": _strength(request, method),
        "noise_source": request.noise_source,
        "emphasis": request.emphasis,
        "resize_mode": request.resize_mode,
    }
    if method is not None and method.forge_name and not (base.layer_method and _method(base.layer_method) is method):
        told["layer_method"] = method.forge_name
    if like is None:
        told |= {f"{role}_given": role in request.inputs for role in ("foreground", "background", "blended")}
    else:
        told = {name: value for name, value in told.items() if value is not None and _differs(like, name, value)}
    return replace(base, **told)


def _strength(request: GenerateRequest | DrawPlan, method: LayerMethod | None) -> float | None:
    """How much is redrawn, of a picture or at last."""
    if request.detail is not None:
        return request.detail.strength
    return request.strength if request.image is not None and not (method and method.reads) else None


def _differs(like: Infotext, name: str, value: Any) -> bool:
    """Whether a value says something that the text did not: a default that it leaves out says nothing."""
    written = getattr(like, name)
    if written is None and name in GenerateRequest.model_fields:
        return value != GenerateRequest.model_fields[name].default
    return value != written


def _method(name: str) -> LayerMethod:
    """The row of the extension's name for a method, in its earlier or later spelling."""
    earlier = name.removeprefix(_NEWER_PREFIX).split(_NEWER_NOTE)[0]
    if earlier not in _BY_FORGE_NAME:
        raise InvalidRequest(f"Unknown layerdiffusion_method {quoted(name)}. {near(earlier, list(_BY_FORGE_NAME))}")
    return _BY_FORGE_NAME[earlier]


def _task(method: LayerMethod) -> Task:
    """The task that a method does alone."""
    for (task, family), route in ROUTES.items():
        same = [(METHODS[stage].inputs, METHODS[stage].outputs) for stage in route]
        if family == method.family and same == [(method.inputs, method.outputs)]:
            return task
    raise AssertionError(f"no task for {method.id}")
