"""What a recipe says of a drawing, in words: for results, for pictures that are looked at, for lists of them.

told(recipe)        # "METHOD, 20 steps, guidance 7, LoRA pastel 0.8, control canny 0.7"
told_apart([one, other])        # ["control canny 0.7", "no control"]: by what drawings of one prompt differ
licence_words(recipe["licences"])       # "base unknown; layer files creativeml-openrail-m"
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from layerdiffuse_mcp.families.entries import is_commercial
from layerdiffuse_mcp.families.registry import LAYER_FILES
from layerdiffuse_mcp.recipes.recipe import BASE
from layerdiffuse_mcp.text.emphasis import extract_loras
from layerdiffuse_mcp.wording import printable

APART = ("model", "sampler", "seed")
"""What is told only of a whole recipe, or where drawings differ by it."""
NAME, PROMPT = 40, 500
"""Characters of a name and of a prompt that are repeated."""


class _Said(BaseModel):
    """A part of a recipe, which may be of any version or made up by anybody: whatever else it holds is passed over."""

    model_config = ConfigDict(extra="ignore")


Text = Annotated[str, Field(max_length=4096)]


class _Stage(_Said):
    method: Text
    sampler: Text = ""
    schedule: Text = ""
    steps: int
    guidance_scale: float


class _Control(_Said):
    model: Text
    strength: float = 1
    start: float = 0
    end: float = 1
    preprocess: Text = "none"


class _Detail(_Said):
    scale: float
    strength: float


class _Request(_Said):
    stages: Annotated[tuple[_Stage, ...], Field(min_length=1, max_length=8)]
    prompt: Annotated[str, Field(max_length=20_000)] = ""
    layer_prompts: Annotated[dict[str, Text], Field(max_length=8)] = {}
    control: Annotated[tuple[_Control, ...], Field(max_length=16)] = ()
    reference: _Control | None = None
    model: Text | None = None
    detail: _Detail | None = None
    strength: float = 1
    seed: int | None = None


def told(recipe: Mapping[str, Any], *, whole: bool = False) -> str:
    """With what a recipe draws, beyond size and, unless `whole`, model, sampler and seed, on one line.

    "" where it cannot be read.
    """
    return ", ".join(text for name, text in _parts(recipe).items() if whole or name not in APART)


def prompt_of(recipe: Mapping[str, Any]) -> str:
    """A recipe's prompt in quotes, the beginning of a long one; "" where it has none that can be read."""
    request = recipe.get("request")
    prompt = cast("Mapping[str, Any]", request).get("prompt") if isinstance(request, Mapping) else None
    return f'"{printable(prompt.strip(), PROMPT)}"' if isinstance(prompt, str) and prompt.strip() else ""


def told_apart(recipes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Of each recipe what the others have otherwise, likewise; "" where nothing is."""
    drawn = [_parts(recipe) for recipe in recipes]
    names = list(dict.fromkeys(name for one in drawn for name in one))
    differ = [name for name in names if len({one.get(name) for one in drawn}) > 1]
    return [", ".join(one.get(name, f"no {name}") for name in differ) for one in drawn]


def _parts(recipe: Mapping[str, Any]) -> dict[str, str]:
    """What is told, by what it is; nothing of what is not used."""
    try:
        request = _Request.model_validate(recipe.get("request"))
    except ValidationError:
        return {}
    prompts = (request.prompt, *request.layer_prompts.values())
    loras = {tag.name: tag.strength for text in prompts for tag in extract_loras(text)[1]}
    redrawn = request.strength and "image" in (recipe.get("pictures") or ())
    said = {
        "model": _name(request.model or ""),
        "method": " + ".join(_name(stage.method) for stage in request.stages),
        "steps": f"{(steps := _each(stage.steps for stage in request.stages))} step{'s' * (steps != '1')}",
        "guidance": f"guidance {_each(stage.guidance_scale for stage in request.stages)}",
        "LoRA": " and ".join(f"LoRA {_name(name)} {strength:g}" for name, strength in loras.items()),
        "control": " and ".join(_control(one) for one in request.control),
        "reference": _acting("reference", request.reference) if request.reference else "",
        "detail": f"detail {request.detail.scale:g}x by {request.detail.strength:g}" if request.detail else "",
        "sampler": " + ".join(dict.fromkeys(_name(f"{one.sampler} {one.schedule}") for one in request.stages)),
        "seed": f"seed {request.seed}" if request.seed is not None else "",
        "strength": f"strength {request.strength:g}" if redrawn else "",
    }
    return {name: text for name, text in said.items() if text}


def _each(values: Any) -> str:
    return " + ".join(dict.fromkeys(f"{value:g}" for value in values))


def _control(control: _Control) -> str:
    made = "" if control.preprocess == "none" else f", {_name(control.preprocess)} map"
    when = "" if (control.start, control.end) == (0, 1) else f", {control.start:g}-{control.end:g} of the steps"
    return f"{_acting('control', control)}{made}{when}"


def _acting(what: str, control: _Control) -> str:
    return f"{what} {_name(control.model)} {control.strength:g}"


def _name(text: str) -> str:
    return printable(text, NAME)


def licence_words(licences: Mapping[str, str]) -> str:
    """Which licence each file is under, those of one licence together."""
    under: dict[str, dict[str, None]] = {}
    for name, licence in licences.items():
        what = "base" if name == BASE else "layer files" if name in LAYER_FILES else _name(name)
        under.setdefault(licence, {})[what] = None
    return "; ".join(
        f"{', '.join(files)} {printable(licence, 80)}{'' if is_commercial(licence) else ' (not for commercial use)'}"
        for licence, files in under.items()
    )
