"""Recipes: what is written into a picture so that it can be made again.

A recipe is a JSON object: the whole request with nothing left open (seed, size and every stage's settings), the hash
of the base model, and of each picture that it started from the file's name, size and SHA-256; no path, for a picture
is made to be passed on. `request_from` turns it back into a request; with the same files, device and version that
request draws the same pixels, within 1 of 255.

    request = request_from(read_recipe(Path("apple.png")))
    request = request_from(recipe, {"seed": 8})         # the same, but for the seed
    request = request_from(recipe, find=find)           # `find` tells where the pictures it names are now

The first format named pictures by their absolute paths; it is still read. The same facts are written as an A1111
parameter line (`infotext.py`), which other tools read.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import BaseModel, ConfigDict, Field

from layerdiffuse_mcp import __version__
from layerdiffuse_mcp.api.control import REFERENCE, REFERENCE_MASK, control_names
from layerdiffuse_mcp.api.lenient import as_meant
from layerdiffuse_mcp.api.plan import DrawPlan, GivenPicture
from layerdiffuse_mcp.api.plan_checks import drawn_roles
from layerdiffuse_mcp.api.requests import LONGEST_ROUTE, GenerateRequest, can_replace, validated
from layerdiffuse_mcp.api.sizes import AS_IS
from layerdiffuse_mcp.errors import ImageError, InvalidRequest
from layerdiffuse_mcp.families.registry import FAMILIES, METHODS
from layerdiffuse_mcp.images.files import name_of
from layerdiffuse_mcp.recipes.merging import dropped, place_of, replaced, whole
from layerdiffuse_mcp.text.emphasis import extract_loras
from layerdiffuse_mcp.wording import short

FORMAT = 2
SHORT = 10
"""Digits of a SHA-256 that messages and the A1111 text hold."""
BASE = "model"
"""The base model's name among the weights that a picture was drawn with; the others have their file's."""
STAGE_FIELDS = ("sampler", "schedule", "steps", "guidance_scale", "stop_at", "layer_weight")
"""Settings of a recipe that a change of the same name replaces in every stage."""
_NAMED_BY_FIELD = ("image", "mask")
_PICTURES_BESIDE: Any = {"control": {"__all__": {"image"}}, "reference": {"image", "mask"}}
_NOT_WRITTEN = {"inputs", *_NAMED_BY_FIELD, "notes", "drawn_with", "name", "format", "metadata"}
_WRITTEN = {*GenerateRequest.model_fields} - _NOT_WRITTEN - {"kind", "speed"}


class _Recipe(BaseModel):
    """What is read of a recipe; the rest is for people."""

    model_config = ConfigDict(extra="ignore")

    request: dict[str, Any]
    pictures: dict[str, GivenPicture] = Field(default_factory=dict, max_length=16)
    input_sha256: dict[str, str] = Field(default_factory=dict, max_length=8)


Find = Callable[[GivenPicture], Path]
"""Where a picture is now; raises LayerDiffuseError when it is not found."""


def recipe_of(
    plan: DrawPlan,
    *,
    weights: Mapping[str, str | None],
    device: str,
    dtype: str,
    licences: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The recipe of a plan: its fields under the names that a request has for them, all stages explicit.

    `weights` as of `Model.weights`: the SHA-256 of the base and of each other file; `licences` by the same names.
    """
    return {
        "format": FORMAT,
        "software": f"layerdiffuse-mcp {__version__}",
        "request": {"kind": "generate"} | plan.model_dump(mode="json", include=_WRITTEN, exclude=_PICTURES_BESIDE),
        "pictures": {name: picture.model_dump(mode="json") for name, picture in plan.pictures.items()},
        "model_hash": weights.get(BASE),
        "weights": {name: digest for name, digest in weights.items() if name != BASE},
        "licences": dict(licences or {}),
        "device": device,
        "dtype": dtype,
    }


def request_from(
    source: Path | Mapping[str, Any], changes: Mapping[str, Any] | None = None, find: Find | None = None
) -> GenerateRequest:
    """The request that a picture or a recipe was made by, with `changes` to its fields.

    Its `notes` say what of the recipe had to go for a change.

    Raises:
        ImageError: the picture holds no recipe, or a picture that it starts from is not found.
        InvalidRequest: the recipe is damaged or of a later format, or a change is not allowed.
    """
    raw = read_recipe(source) if isinstance(source, Path) else source
    if raw.get("format") not in (1, FORMAT):
        raise InvalidRequest(
            f"The recipe has format {short(raw.get('format'))}, and this version reads formats 1 and {FORMAT}. "
            f"Use the version of layerdiffuse-mcp that made it: {short(raw.get('software', 'unknown'))}"
        )
    old, pictures = _read(raw)
    named = as_meant(GenerateRequest, changes or {})
    changes = whole(old, named)
    for name in () if pictures else ("strength", "resize_mode"):
        old.pop(name, None)  # they act on pictures: earlier versions wrote them all the same
    fields = {**_size_of(old, changes), **changes}
    if "stages" not in changes:
        fields["stages"] = _changed_stages(old.get("stages"), changes)
        fields.pop("method", None)  # the others stay: the planner refuses those that change nothing
    fields["notes"] = (*_notes_on_prompts(old, changes, fields), *dropped(old, named))
    fields["drawn_with"] = _drawn_with(raw, changes, fields["stages"])
    given = {*changes.get("inputs", {}), *(name for name in _NAMED_BY_FIELD if name in changes)}
    return validated(GenerateRequest, _with_pictures(fields, pictures, given | replaced(old, named), find))


def _size_of(old: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's fields: what it says of its size goes with a change of what that was decided for.

    One of an earlier version, which drew every size as it was asked for, says nothing of it.
    """
    fields = {"fit": AS_IS, **old}
    if changes.keys() & {"model", "width", "height"}:
        del fields["fit"]
    if changes.keys() & {"model", "width", "height", "fit"}:
        fields.pop("drawn", None)
        if isinstance(detail := fields.get("detail"), Mapping):
            fields["detail"] = {name: value for name, value in detail.items() if name != "tiling"}
    return fields


def other_weights(before: Mapping[str, str | None] | None, now: Mapping[str, str | None]) -> tuple[str, ...]:
    """What to say of a recipe's files that are others now, or cannot be compared; nothing without a recipe.

    Nothing is said of what has no hash then and now, as folders of several files.
    """
    notes: list[str] = []
    unknown: dict[str, list[str]] = {}
    for name in sorted(now.keys() & (before or {}).keys()):
        was, digest = (before or {})[name], now[name]
        if was is digest is None:
            continue
        what = "the base model" if name == BASE else name
        if was is None or digest is None:
            why = "the recipe holds no hash of it" if was is None else "it has none that can be told here"
            unknown.setdefault(why, []).append(what)
        elif not (was.startswith(digest) or digest.startswith(was)):
            notes.append(
                f"{_capital(what)} is another file than the recipe's (its SHA-256 begins with {digest[:SHORT]} instead "
                f"of {was[:SHORT]}): the picture is not the same."
            )
    for why, names in unknown.items():
        listed = " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)
        notes.append(f"{_capital(listed)} {'were' if names[1:] else 'was'} not checked to be the recipe's: {why}.")
    return tuple(notes)


def _capital(name: str) -> str:
    return name[:1].upper() + name[1:] if name.startswith("the ") else name


def _drawn_with(recipe: Mapping[str, Any], changes: Mapping[str, Any], stages: Any) -> dict[str, Any]:
    """What a recipe says of its files, None where it names none and should; of others it says nothing, which only a
    change needs, as of another base or method.
    """
    recorded = recipe.get("weights")
    should = [] if changes.get("method") else _layer_files(stages)
    others = recorded if isinstance(recorded, Mapping) and recorded else dict.fromkeys(should)
    same = changes.get("model") in (None, recipe["request"].get("model"))
    return {**others, **({BASE: recipe.get("model_hash")} if same else {})}


def _layer_files(stages: Sequence[Mapping[str, Any]]) -> list[str]:
    """The layer and transparency files that stages were drawn with."""
    methods = [name for stage in stages if isinstance(name := stage.get("method"), str) and name in METHODS]
    return [file for name in methods for file in FAMILIES[METHODS[name].family].layer_files(methods)]


def read_recipe(
    source: Path | BinaryIO, max_pixels: int | None = None, instead: Callable[[], str | None] = lambda: None
) -> dict[str, Any]:
    """The recipe inside a picture; raises ImageError when there is none, or the picture has too many pixels.

    `instead` says what to do with this picture where there is none, if that is known.
    """
    from layerdiffuse_mcp.images import png, read

    recipe = png.read_recipe(source, max_pixels or read.MAX_PIXELS)
    if recipe is None:
        advice = instead() or "Give a PNG or WebP that layerdiffuse-mcp drew and nobody has rewritten since."
        raise ImageError(f"{name_of(source)} holds no recipe. {advice}")
    return recipe


def _read(raw: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, GivenPicture]]:
    """A recipe's request, without its pictures, and these."""
    try:
        recipe = validated(_Recipe, raw)
        pictures = recipe.pictures if raw["format"] == FORMAT else _pictures_by_path(recipe)
    except InvalidRequest as error:
        raise InvalidRequest(f"The recipe is damaged: {error}") from None
    return {name: value for name, value in recipe.request.items() if name not in _NOT_WRITTEN}, pictures


def _pictures_by_path(recipe: _Recipe) -> dict[str, GivenPicture]:
    """The pictures of a recipe of the first format, which named them by path."""
    inputs = recipe.request.get("inputs")
    named = {**(inputs if isinstance(inputs, dict) else {}), **{n: recipe.request.get(n) for n in _NAMED_BY_FIELD}}
    facts = {name: {"name": path, "sha256": recipe.input_sha256.get(str(path))} for name, path in named.items() if path}
    return validated(_Recipe, {"request": {}, "pictures": facts}).pictures


def _changed_stages(stages: Any, changes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A recipe's stages with the settings that are changed, and with another method where that can take the place."""
    if not isinstance(stages, Sequence) or not all(isinstance(stage, Mapping) for stage in stages):
        raise InvalidRequest(
            "The recipe is damaged: it names no stages. Give another picture made by layerdiffuse-mcp."
        )
    if len(stages) > LONGEST_ROUTE:  # before anything is made of each
        raise InvalidRequest(
            f"The recipe is damaged: it names {len(stages)} stages, and a picture has at most {LONGEST_ROUTE}. "
            "Give another picture made by layerdiffuse-mcp."
        )
    changed = [{**stage, **{name: changes[name] for name in STAGE_FIELDS if name in changes}} for stage in stages]
    method = changes.get("method")
    if method is None:
        return changed
    places = [stage for stage in changed if _may_take(method, stage.get("method"))]
    if not places:
        methods = ", ".join(short(stage.get("method")) for stage in changed)
        raise InvalidRequest(f"The method {method} draws something else than the recipe's {methods}: leave it out.")
    for stage in places:
        stage["method"] = method
    return changed


def _may_take(method: str, place: Any) -> bool:
    return isinstance(place, str) and method in METHODS and place in METHODS and can_replace(method, place)


def _notes_on_prompts(old: Mapping[str, Any], changes: Mapping[str, Any], fields: dict[str, Any]) -> tuple[str, ...]:
    """With a new prompt the old one's layers are others: their own prompts go, which is said.

    So do prompts of layers that are not drawn, which earlier versions took and did not read.
    """
    own, named = old.get("layer_prompts"), changes.get("layer_prompts", {})
    same = _words(changes.get("prompt", old.get("prompt"))) == _words(old.get("prompt"))
    if not own or not isinstance(own, Mapping) or not isinstance(named, Mapping):
        return ()
    if same:
        drawn = _drawn_by(fields["stages"])
        fields["layer_prompts"] = {role: text for role, text in own.items() if not drawn or role in drawn} | dict(named)
        return ()
    fields["layer_prompts"] = named
    if not (gone := [str(role) for role in own if role not in named]):
        return ()
    roles = short(", ".join(gone))
    return (f"The recipe's own prompts for {roles} were dropped, since the prompt is another.",)


def _words(prompt: Any) -> str | None:
    """A prompt without the LoRAs that it names."""
    return extract_loras(prompt)[0].strip() if isinstance(prompt, str) else None


def _drawn_by(stages: Sequence[Any]) -> set[str]:
    """The layers that a recipe's stages draw, as far as they can be read."""
    methods = [stage.get("method") for stage in stages if isinstance(stage, Mapping)]
    return {*drawn_roles([METHODS[name] for name in methods if isinstance(name, str) and name in METHODS])}


def _with_pictures(
    fields: Mapping[str, Any], pictures: Mapping[str, GivenPicture], given: Collection[str], find: Find | None
) -> dict[str, Any]:
    """A request's fields with where the recipe's pictures are that are not given now."""
    found: dict[str, Path] = {}
    for name, picture in pictures.items():
        if name in given:
            continue
        if find is None:
            raise ImageError(f"The recipe starts from {short(picture.name)}, which is not given. Give it as {name}.")
        try:
            found[name] = find(picture)
        except ImageError as error:
            raise ImageError(f"{error} Or give another as {place_of(name)}.") from None
    made = dict(fields)
    if isinstance(controls := made.get("control"), Sequence):
        named = zip(control_names(len(controls)), controls, strict=True)
        made["control"] = [
            {**one, "image": found.pop(name)} if name in found and isinstance(one, Mapping) else one
            for name, one in named
        ]
    if isinstance(reference := made.get("reference"), Mapping):
        parts = {"image": REFERENCE, "mask": REFERENCE_MASK}
        made["reference"] = {**reference, **{part: found.pop(name) for part, name in parts.items() if name in found}}
    alone = {name: found.pop(name) for name in _NAMED_BY_FIELD if name in found}
    return {**made, **alone, "inputs": {**made.get("inputs", {}), **found}}
