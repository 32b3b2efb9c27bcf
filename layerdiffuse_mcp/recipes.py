"""Recipes: what is written into a picture so that it can be made again.

A recipe is a JSON object: the request with nothing left open (seed, size and every stage's settings),
the hash of the base model and of each input picture. `request_from` turns it back into a request; with
the same files, device and version that request draws the same pixels.

    request = request_from(Path("apple.png"))
    request = request_from(Path("apple.png"), {"seed": 8})      # the same, but for the seed

The same facts are written as an A1111 parameter line (`infotext.py`), which other tools read.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from layerdiffuse_mcp import __version__
from layerdiffuse_mcp.errors import ImageError, InvalidRequest
from layerdiffuse_mcp.methods import METHODS, Role
from layerdiffuse_mcp.requests import GenerateRequest, validated

FORMAT = 1
BASE = "model"
"""The base model's name among the weights that a picture was drawn with; the others have their file's."""
STAGE_FIELDS = ("sampler", "schedule", "steps", "guidance_scale", "stop_at", "layer_weight")
"""Settings of a recipe that a change of the same name replaces in every stage."""


def recipe_of(
    request: GenerateRequest, *, weights: Mapping[str, str | None], device: str, dtype: str
) -> dict[str, Any]:
    """The recipe of a resolved request: one result, all stages explicit; `weights` as of `Model.weights`."""
    files = {**request.inputs, "image": request.image, "mask": request.mask}
    return {
        "format": FORMAT,
        "software": f"layerdiffuse-mcp {__version__}",
        "request": request.model_dump(mode="json", exclude_defaults=True, exclude={"drawn_with"}),
        "model_hash": weights.get(BASE),
        "weights": {name: digest for name, digest in weights.items() if name != BASE},
        "device": device,
        "dtype": dtype,
        "input_sha256": {str(path): sha256(path) for path in files.values() if path is not None},
    }


def request_from(source: Path | Mapping[str, Any], changes: Mapping[str, Any] | None = None) -> GenerateRequest:
    """The request that a picture or a recipe was made by, with `changes` to its fields.

    Raises:
        ImageError: the picture holds no recipe, or an input picture has changed since.
        InvalidRequest: the recipe is of a later format, or a change is not allowed.
    """
    recipe = read_recipe(source) if isinstance(source, Path) else source
    if recipe.get("format") != FORMAT or not isinstance(recipe.get("request"), dict):
        raise InvalidRequest(
            f"The recipe has format {recipe.get('format')!r}, and this version reads format {FORMAT}. "
            "Use the version of layerdiffuse-mcp that made it: " + str(recipe.get("software", "unknown"))
        )
    fields = {**recipe["request"], **(changes or {})}
    if changes and "stages" not in changes:
        in_stages = {name: changes[name] for name in STAGE_FIELDS if name in changes}
        fields["stages"] = [{**stage, **in_stages} for stage in recipe["request"]["stages"]]
        for name in in_stages:
            del fields[name]
    fields["drawn_with"] = _drawn_with(recipe, changes or {})
    request = validated(GenerateRequest, fields)
    given = set(map(str, (*request.inputs.values(), request.image, request.mask)))
    for path, digest in recipe.get("input_sha256", {}).items():
        if path in given and sha256(Path(path)) != digest:
            raise ImageError(f"{path} has changed since the recipe was written. Restore it, or give another picture.")
    return request


def other_weights(before: Mapping[str, str | None] | None, now: Mapping[str, str | None]) -> tuple[str, ...]:
    """What to say of a recipe's files that are others now, or cannot be compared; nothing without a recipe."""
    notes: list[str] = []
    for name in now.keys() & (before or {}).keys():
        was, digest = (before or {})[name], now[name]
        what = "The base model" if name == BASE else name
        if was is None or digest is None:
            where = "the recipe holds no hash of it" if was is None else "it has none that can be told here"
            notes.append(f"{what} was not checked to be the recipe's: {where}.")
        elif not (was.startswith(digest) or digest.startswith(was)):
            notes.append(
                f"{what} is another file than the recipe's (its SHA-256 begins with {digest} instead of {was[:10]}): "
                "the picture is not the same."
            )
    return tuple(sorted(notes))


def _drawn_with(recipe: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """What a recipe says of its files; of another base that is asked for it says nothing."""
    others = recipe.get("weights", {})
    same = changes.get("model") in (None, recipe["request"].get("model"))
    base = {BASE: recipe.get("model_hash")} if same else {}
    return {**(others if isinstance(others, Mapping) else {}), **base}


def read_recipe(path: Path) -> dict[str, Any]:
    """The recipe inside a picture; raises ImageError when there is none."""
    from layerdiffuse_mcp.images.png import read_recipe as read

    recipe = read(path)
    if recipe is None:
        raise ImageError(f"{path} holds no recipe. Give a PNG made by layerdiffuse-mcp and not rewritten since.")
    return recipe


def outputs_of(request: GenerateRequest) -> tuple[Role, ...]:
    """The roles that the request's stages draw, in the order of drawing."""
    return tuple(role for stage in request.stages or () for role in METHODS[stage.method].outputs)


def sha256(path: Path) -> str:
    """SHA-256 of a file as hex digits; raises ImageError when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror}. Give the path of an existing file.") from None
