"""Drawing a picture again: by the recipe inside it, or by a parameter text as people paste it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import anyio.to_thread
from mcp.server.mcpserver import Context
from mcp_types import CallToolResult
from pydantic import Field

from layerdiffuse_mcp.api.fields import Count, Omittable, Prompt, Seed
from layerdiffuse_mcp.api.plan import GivenPicture
from layerdiffuse_mcp.api.requests import GenerateRequest
from layerdiffuse_mcp.errors import ImageError, InvalidRequest
from layerdiffuse_mcp.server.calls import run
from layerdiffuse_mcp.server.results import DrawingResult
from layerdiffuse_mcp.server.services import Services, services
from layerdiffuse_mcp.server.tools.consent import Drawings, consent_to_draw
from layerdiffuse_mcp.server.tools.drawing import with_copies
from layerdiffuse_mcp.server.tools.parameters import (
    Described,
    GivenOutput,
    Options,
    Output,
    Size,
    fields_of,
    file_field,
    tagged,
    width_and_height,
    without_tags,
)
from layerdiffuse_mcp.settings import Settings


class Changes(Described):
    """What is to differ from the picture that was; each as the drawing tools take it."""

    prompt: Omittable[Prompt] = None
    size: Omittable[Size] = None
    seed: Omittable[Seed] = None
    count: Omittable[Count] = None
    options: Omittable[
        Annotated[
            Options,
            Field(
                description="What is left out stays, also within reference, detail and the entries of control by their "
                "places; another model there starts anew",
                examples=[{"steps": 30, "control": [{"strength": 0.5}]}],
            ),
        ]
    ] = None


class Pictures(Described):
    """The pictures that the drawing starts from."""

    image: Omittable[Annotated[str, file_field("Picture to edit: a path or an image id")]] = None
    mask: Omittable[Annotated[str, file_field("Picture that is white where image is to change")]] = None
    foreground: Omittable[Annotated[str, file_field("Picture of the foreground: a path or an image id")]] = None
    background: Omittable[Annotated[str, file_field("Picture of the background: a path or an image id")]] = None
    blended: Omittable[Annotated[str, file_field("The finished picture, both layers together")]] = None


def _drawings(ctx: Context[Services], image: str | None, parameters: str | None, changes: Changes | None) -> Drawings:
    """What is drawn again, as far as that says which files it needs: its pictures are looked for later."""
    known = services(ctx)

    def drawings() -> list[GenerateRequest]:
        if image is not None:
            return [_of_picture(known, image, changes, {}, lambda wanted: Path(wanted.name))]
        return [_of_text(parameters, changes, {}, known.settings)] if parameters is not None else []

    return drawings


async def redraw_image(
    ctx: Context[Services],
    *,
    image: Omittable[
        Annotated[str, file_field("Picture that this server drew, whose recipe is inside: a path or an image id")]
    ] = None,
    parameters: Omittable[
        Annotated[
            str,
            Field(
                min_length=1,
                max_length=50_000,
                description="Instead of image: a parameter text of A1111 or Forge, as people paste it",
                examples=["an apple, high quality\nNegative prompt: bad, ugly\nSteps: 20, Seed: 12345, CFG scale: 5"],
            ),
        ]
    ] = None,
    changes: Omittable[
        Annotated[
            Changes,
            Field(
                description="What is to be different; left out, all is as it was",
                examples=[{"seed": 9, "options": {"steps": 30}}],
            ),
        ]
    ] = None,
    pictures: Omittable[
        Annotated[
            Pictures,
            Field(
                description="Pictures to start from: instead of those of the recipe, or because a parameter text names "
                "none",
                examples=[{"foreground": "cup.png"}],
            ),
        ]
    ] = None,
    output: Omittable[GivenOutput] = None,
    fetch: Annotated[bool, consent_to_draw(_drawings)],
) -> Annotated[CallToolResult, DrawingResult]:
    """Draw a picture again, exactly or with named changes: give image, or parameters. Returns what the tool that drew
    it first returned: paths, verdict, alpha facts; or a job_id for get_job. It says where the models' files are others
    than they were or cannot be compared, and what of the recipe or the text was dropped.
    """
    known, output = services(ctx), output or Output()
    if (image is None) == (parameters is None):
        raise InvalidRequest("redraw_image takes either image or parameters: give one of them.")

    def made() -> GenerateRequest:
        with known.contents.keeping() as keep:
            changed = fields_of(None, changes.options if changes else None)
            beside = {name: changed[name] for name in ("control", "reference") if name in changed}
            given = with_copies(known, beside, pictures.given if pictures else {}, keep)
            given |= fields_of(None, None, output)
            if image is None:
                assert parameters is not None
                return _of_text(parameters, changes, given, known.settings)
            return _of_picture(known, image, changes, given, lambda wanted: known.find(wanted, keep))

    request = await anyio.to_thread.run_sync(made)
    return await run(
        ctx,
        request,
        "redraw_image",
        wait_seconds=output.wait_seconds,
        key=output.key,
        preview=output.preview,
        fetch=fetch,
    )


def _of_picture(
    known: Services,
    image: str,
    changes: Changes | None,
    given: dict[str, Any],
    find: Callable[[GivenPicture], Path],
) -> GenerateRequest:
    """The request of the recipe inside a picture, or else of the parameter text inside."""
    from layerdiffuse_mcp.images.png import read_parameters
    from layerdiffuse_mcp.recipes.recipe import read_recipe, request_from

    with known.readable(image) as opened:
        try:
            recipe = read_recipe(opened.file, known.settings.max_pixels, lambda: known.undrawn(opened).instead)
        except ImageError:
            if (text := read_parameters(opened.file, known.settings.max_pixels)) is None:
                raise
            return _of_text(text, changes, given, known.settings)
    old = recipe.get("request")
    changed = _changed(changes, old if isinstance(old, Mapping) else {}, known.settings)
    return request_from(recipe, changed | given, find)


def _of_text(parameters: str, changes: Changes | None, given: dict[str, Any], settings: Settings) -> GenerateRequest:
    from layerdiffuse_mcp.recipes import infotext
    from layerdiffuse_mcp.recipes.a1111 import request_from

    info = infotext.parse(parameters)
    changed = _changed(changes, {"prompt": info.prompt, "model": info.model}, settings)
    return request_from(info, changed | given, settings)


def _changed(changes: Changes | None, old: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """The fields of a request that are to be others; a LoRA stays unless the changes name some."""
    if changes is None:
        return {}
    before = old.get("prompt")
    words, tags = without_tags(before if isinstance(before, str) else "")
    fields = fields_of(None, changes.options)
    loras = changes.options.loras if changes.options else None
    if changes.prompt is not None or loras is not None:
        prompt = words if changes.prompt is None else changes.prompt
        kept = tags if loras is None and not without_tags(prompt)[1] else ""
        fields["prompt"] = tagged(f"{prompt} {kept}".rstrip(), loras or {})
    fields |= {name: value for name, value in changes.given.items() if name in ("seed", "count")}
    model = fields.get("model", old.get("model"))
    return fields | width_and_height(changes.size, model if isinstance(model, str) else None, settings)
