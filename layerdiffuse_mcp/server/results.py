"""What an agent gets back: a text that stands alone, one preview, links, structured facts.

Some clients show the model no picture, some no structured content: everything that
matters is in the text. Nothing here is larger for more or larger pictures, apart from one
line each.
"""

import base64
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mcp_types import CallToolResult, ContentBlock, ImageContent, ResourceLink, TextContent
from pydantic import BaseModel, Field

from layerdiffuse_mcp.api.fields import Omittable
from layerdiffuse_mcp.api.outcome import AlphaFacts, ImageResult, Outcome, Placement, Verdict
from layerdiffuse_mcp.api.plan import DrawPlan
from layerdiffuse_mcp.backends.pictures import PictureRoom
from layerdiffuse_mcp.errors import LayerDiffuseError
from layerdiffuse_mcp.images.describe import describe
from layerdiffuse_mcp.images.tasks import BESIDE, SheetTask, Shown
from layerdiffuse_mcp.jobs.job import Job, State
from layerdiffuse_mcp.recipes.recipe import recipe_of
from layerdiffuse_mcp.recipes.told import licence_words, told
from layerdiffuse_mcp.server.services import IMAGES

MEDIA_TYPES = {
    ".png": "image/png",
    ".webp": "image/webp",
    ".psd": "image/vnd.adobe.photoshop",
    ".ora": "image/openraster",
    ".jpg": "image/jpeg",
    ".json": "application/json",
}

WAYS = 3
"""Lines that say with what the pictures of one job were drawn."""
GONE = "Its file is no longer there, deleted or moved"
URI = "For resources/read; its end is the image id that tools take"

logger = logging.getLogger(__name__)


class Alpha(BaseModel):
    """Facts on the alpha channel; shares are 0..1 of all pixels."""

    transparent: float = Field(description="Share of pixels that are invisible")
    partial: float = Field(description="Share of pixels in between: soft edges, glass, smoke")
    opaque: float = Field(description="Share of pixels that nothing shines through")
    bbox: Omittable[list[int]] = Field(
        default=None, description="What is visible: left, top, right, bottom, in pixels, the last two exclusive"
    )
    edges_touched: tuple[str, ...] = Field(default=(), description="Edges where it may be cut off")
    has_transparency: bool = Field(description="False when it is practically opaque")


class PictureFacts(BaseModel):
    """One picture file."""

    number: int = Field(description="In the preview and the text, from 1")
    role: str = Field(
        description="foreground, background, blended (both together), composed (the foreground on the given picture), "
        "or the layer's name"
    )
    subject: Omittable[str] = Field(default=None, description="Of a set: which subject it shows")
    box: Omittable[list[int]] = Field(
        default=None, description="Where it lies if it does not fill the picture: as bbox"
    )
    path: str = Field(description="Absolute path of the file")
    uri: str = Field(description=URI)
    width: int = Field(description="In pixels")
    height: int = Field(description="In pixels")
    seed: Omittable[int] = Field(default=None, description="Seed that draws this picture alone")
    verdict: Omittable[Verdict] = Field(default=None, description="Whether it may be handed on, by alpha and prompt")
    reason: Omittable[str] = Field(default=None, description="Why the verdict is not good, and what to try")
    alpha: Omittable[Alpha] = Field(default=None, description="What its alpha holds; missing for an opaque layer")
    placement: Omittable[Placement] = Field(
        default=None, description="Where what was drawn lies on the given picture, if that has another size"
    )
    note: Omittable[str] = Field(default=None, description="What else to know of it")
    gone: bool = Field(default=False, description=GONE)


class SheetFacts(BaseModel):
    """A sheet of the pictures of a set."""

    path: str = Field(description="Absolute path of the sheet")
    uri: str = Field(description=URI)
    width: int = Field(description="In pixels")
    height: int = Field(description="In pixels")
    cell: list[int] = Field(description="Width and height of a cell, in pixels")
    columns: int = Field(description="Cells in a row; they are filled row by row, in the order of the subjects")
    spacing: int = Field(description="Pixels between two cells, for loaders that cut a sheet into cells")
    margin: int = Field(default=0, description="Pixels before the first cell, likewise")
    gone: bool = Field(default=False, description=GONE)
    atlas: Omittable[str] = Field(
        default=None, description="Path of the atlas as JSON (Hash): frames by subject; PixiJS and Phaser read it"
    )
    atlas_array: Omittable[str] = Field(default=None, description="Path of the atlas as JSON (Array): frames in order")


class JobFacts(BaseModel):
    """What is known of a job: what it made once it is done, its progress before; nothing that is empty."""

    status: State = Field(description="done, failed, cancelled and interrupted are final")
    job_id: str = Field(description="Id for get_job and cancel_job")
    model: Omittable[str] = Field(default=None, description="Base model that was used")
    warnings: tuple[str, ...] = Field(default=(), description="What to know before the result is handed on")
    progress: Omittable[float] = Field(default=None, description="0..1, while it waits or runs")
    message: Omittable[str] = Field(default=None, description="What it is doing, and how long that may take")
    error: Omittable[str] = Field(default=None, description="Why it failed")


class LatentResult(JobFacts):
    """A job that saves latents."""

    latents: tuple[str, ...] = Field(default=(), description="Paths of saved latents")


class DrawingResult(LatentResult):
    """A job that draws."""

    images: tuple[PictureFacts, ...] = Field(default=(), description="The pictures made, the best results first")
    licences: Omittable[dict[str, str]] = Field(
        default=None,
        description="Of the base, as model, and of other files that were drawn with, or unknown",
    )
    timings: Omittable[dict[str, float]] = Field(default=None, description="Seconds by stage")


class JobResult(DrawingResult):
    """A job of any kind."""

    sheet: Omittable[SheetFacts] = Field(default=None, description="Of a set: all its pictures in one, with its atlas")
    documents: tuple[str, ...] = Field(default=(), description="Of a picture's layers: the files that hold all")
    recipe: Omittable[dict[str, Any]] = Field(
        default=None, description="What draws the same again, if it was asked for; it is in the files, too"
    )


def structured(model: BaseModel) -> dict[str, Any]:
    """Structured content: plain JSON without nulls, and without what is empty by default."""
    return model.model_dump(mode="json", exclude_none=True, exclude_defaults=True)


def plain(text: str, model: BaseModel) -> CallToolResult:
    """A result of text and facts."""
    return CallToolResult(content=[TextContent(type="text", text=text)], structured_content=structured(model))


def image_uri(job: Job, number: int) -> str:
    """The address of a job's picture, numbered from 1."""
    return f"{IMAGES}{job.id}-{number}"


def of_job(
    job: Job,
    message: str,
    shown: Shown | None = None,
    first: int = 1,
    *,
    several: bool = False,
    recipe: bool = False,
) -> CallToolResult:
    """The result for a job in whatever state it is.

    Args:
        message: how far it is.
        shown: a preview of its pictures.
        first: number of its first picture.
        several: whether its pictures are numbered even if there is one, because others stand beside them.
        recipe: whether to add it.
    """
    facts = facts_of(job, message, first, recipe=recipe)
    match job.status:
        case State.DONE:
            return _finished(job, facts, shown, several=several or len(facts.images) > 1, recipe=recipe)
        case State.FAILED:
            text = f"{job.id} ({job.what}) failed: {facts.error}"
        case State.INTERRUPTED:
            text = f"{job.id} ({job.what}) was interrupted: {facts.error}"
        case State.CANCELLING:
            text = f"{job.id} ({job.what}) is cancelled; its worker stops at its next step. It leaves no pictures."
        case State.CANCELLED:
            text = f"{job.id} ({job.what}) was cancelled; it left no pictures."
        case _:
            text = (
                f"{job.id} ({job.what}) is not finished yet: {job.progress.fraction:.0%}, {facts.message}. "
                f"Call get_job with job_ids=[{job.id!r}] to wait for its result, or cancel_job to stop it."
            )
    return plain(text, facts)


def facts_of(job: Job, message: str, first: int = 1, *, recipe: bool = True) -> JobResult:
    """The structured content for a job; its pictures are numbered from `first`."""
    facts = JobResult(status=job.status, job_id=job.id)
    if not job.finished:
        facts.progress, facts.message = round(job.progress.fraction, 4), with_estimate(message, job.seconds_left)
    if job.error is not None:
        facts.error = str(job.error)
    if (outcome := job.outcome) is not None:
        facts.images = tuple(_picture_facts(job, n, image, first) for n, image in enumerate(outcome.single, 1))
        facts.sheet = _sheet_facts(job, outcome)
        facts.documents = () if outcome.sheet else _there(outcome.files)
        facts.latents = _there(outcome.latents)
        facts.model = outcome.model or None
        facts.licences = outcome.licences or None
        spent = {stage: round(seconds, 3) for stage, seconds in outcome.timings.model_dump().items() if seconds}
        facts.timings = spent or None
        facts.warnings = outcome.warnings
        facts.recipe = outcome.recipe if recipe else None
    return facts


def with_estimate(message: str, seconds_left: float | None) -> str:
    """A job's message with one estimate: its own, which knows the pace of its steps, or else the one given."""
    if seconds_left is None or " left" in message:
        return message
    return f"{message}, about {seconds_left:.0f} s left"


def _picture_facts(job: Job, number: int, image: ImageResult, first: int) -> PictureFacts:
    return PictureFacts(
        number=first + number - 1,
        role=image.label,
        box=image.box and list(image.box),
        path=str(image.path),
        uri=image_uri(job, number),
        width=image.width,
        height=image.height,
        seed=image.seed,
        subject=image.subject,
        verdict=image.verdict,
        reason=image.reason,
        placement=image.placement,
        note=image.note,
        alpha=alpha_facts(image.alpha),
        gone=not os.path.exists(image.path),
    )


def _there(paths: Sequence[Path]) -> tuple[str, ...]:
    """Those that nobody has deleted or moved."""
    return tuple(str(path) for path in paths if os.path.exists(path))


def _sheet_facts(job: Job, outcome: Outcome) -> SheetFacts | None:
    if outcome.sheet is None:
        return None
    sheet, (by_name, in_order) = outcome.images[-1], outcome.files
    return SheetFacts(
        path=str(sheet.path),
        uri=image_uri(job, len(outcome.images)),
        width=sheet.width,
        height=sheet.height,
        cell=list(outcome.sheet.cell),
        columns=outcome.sheet.columns,
        spacing=outcome.sheet.spacing,
        margin=outcome.sheet.margin,
        gone=not os.path.exists(sheet.path),
        atlas=next(iter(_there([by_name])), None),
        atlas_array=next(iter(_there([in_order])), None),
    )


def alpha_facts(facts: AlphaFacts | None) -> Alpha | None:
    """The same facts in their structured form."""
    return None if facts is None else Alpha.model_validate(facts.model_dump())


def together(parts: Sequence[CallToolResult], shown: Shown | None) -> CallToolResult:
    """The results of several jobs as one: their texts, one preview, their links."""
    texts = [block.text for part in parts for block in part.content if isinstance(block, TextContent)]
    links = [block for part in parts for block in part.content if isinstance(block, ResourceLink)]
    texts += [_on_the_preview(len(links) > 1)] if shown else []
    content: list[ContentBlock] = [TextContent(type="text", text="\n".join(texts))]
    content += [image_content(shown)] if shown else []
    return CallToolResult(
        content=[*content, *links], structured_content={"jobs": [part.structured_content for part in parts]}
    )


def _on_the_preview(several: bool) -> str:
    numbered = ", its numbers those above" if several else ""
    return f"The attached picture is a small preview on a checkerboard{numbered}."


def _finished(job: Job, facts: JobResult, shown: Shown | None, *, several: bool, recipe: bool) -> CallToolResult:
    outcome = job.outcome
    assert outcome is not None
    lines = [_headline(job, outcome)]
    said: dict[str, int] = {}  # each reason once, with the number of its picture
    for picture, image in zip(facts.images, outcome.single, strict=True):
        before = said.setdefault(image.reason, picture.number) if image.reason else picture.number
        once = image if before == picture.number else image.model_copy(update={"reason": f"as {before}"})
        lines.append(f"{f'{picture.number}. ' * several}{picture.uri.removeprefix(IMAGES)}: {line_of(once)}")
    lines += [f"Drawn by {drawn}." for drawn in _drawn(job, outcome)]
    lines += lines_of(facts.sheet) if facts.sheet else []
    lines += _of_documents(facts)
    lines += [f"latent: {path}" for path in facts.latents]
    if shown is not None:
        lines.append(_on_the_preview(several))
    if outcome.licences:
        lines.append(f"Licences: {licence_words(outcome.licences)}.")
    if recipe:
        own = "each picture that was drawn holds its own, and inspect_image reads it"
        lines.append(f"Recipe: {json.dumps(facts.recipe, ensure_ascii=False) if facts.recipe else own}")
    lines += [f"Warning: {warning}" for warning in outcome.warnings]
    content: list[ContentBlock] = [TextContent(type="text", text="\n".join(lines))]
    if shown is not None:
        content.append(image_content(shown))
    linked: list[PictureFacts | SheetFacts] = [facts.sheet] if facts.sheet else [*facts.images]
    content += [link_to(Path(picture.path), picture.uri) for picture in linked if not picture.gone]
    return CallToolResult(content=content, structured_content=structured(facts))


def _headline(job: Job, outcome: Outcome) -> str:
    count, is_set = len(outcome.single), any(image.subject for image in outcome.images)
    made = f"{count} picture{'s' * (count != 1)}" if count else "nothing to show"
    gone = sum(not os.path.exists(image.path) for image in outcome.single)
    made += f", {gone if gone < count else 'all'} of them gone," * bool(gone)
    best = ", the best first" if len({image.seed for image in outcome.images}) > 1 and not is_set else ""
    spent = job.seconds or outcome.timings.total
    by = f" with {outcome.model}" if outcome.model else ""
    on = f" on {outcome.device}" if outcome.device else ""
    return f"{job.what} is done: {made}{best} in {spent:.1f} s{by}{on} ({job.id})."


def _drawn(job: Job, outcome: Outcome) -> list[str]:
    """With what its pictures were drawn, beyond model, size and seed: a line for each way, of many the first ones."""
    plans = [plan for plan in job.tasks if isinstance(plan, DrawPlan)]
    recipes = [outcome.recipe] if outcome.recipe else [recipe_of(p, weights={}, device="", dtype="") for p in plans]
    return [line for line in dict.fromkeys(map(told, recipes)) if line][:WAYS]


def _of_documents(facts: JobResult) -> list[str]:
    """The files that hold all layers, and how one layer is changed; a record is none of them."""
    lines = [
        f"Record of the psd, to be left beside it: {path}" if path.endswith(BESIDE) else f"All layers: {path}"
        for path in facts.documents
    ]
    if lines:
        source = json.dumps(facts.images[-1].path, ensure_ascii=False)
        change = json.dumps({facts.images[0].role: {"x": 10}}, ensure_ascii=False)
        lines.append(f"To change one layer, call compose_layers with source={source} and replace={change}.")
    return lines


def line_of(image: ImageResult) -> str:
    """One picture in one line: where it is, what its alpha holds, and what to doubt."""
    holds = "opaque layer" if image.alpha is None else describe(image.alpha, image.label)
    doubt = f". {image.verdict}: {image.reason}." if image.reason else ""
    note = f"; {image.note}" if image.note else ""
    what = image.subject or image.label
    if not os.path.exists(image.path):
        holds, note, doubt = "its file is gone, deleted or moved", "", ""
    seed = "" if image.seed is None else f", seed {image.seed}"
    return f"{image.path} ({what}, {image.width}x{image.height}{seed}): {holds}{note}{doubt}"


def lines_of(sheet: SheetFacts) -> list[str]:
    """A sheet and its atlas in lines."""
    return [
        f"Sheet {sheet.uri.removeprefix(IMAGES)}: {sheet.path} ({sheet.width}x{sheet.height}, "
        f"cells of {sheet.cell[0]}x{sheet.cell[1]}, "
        f"{sheet.columns} a row){': its file is gone, deleted or moved' * sheet.gone}",
        *([f"Atlas, frames by name: {sheet.atlas}"] if sheet.atlas else []),
        *([f"Atlas, frames in order: {sheet.atlas_array}"] if sheet.atlas_array else []),
    ]


def link_to(path: Path, uri: str) -> ResourceLink:
    """A link that `resources/read` follows."""
    size = path.stat().st_size if os.path.isfile(path) else None
    return ResourceLink(type="resource_link", name=path.name, uri=uri, mime_type=media_type(path), size=size)


def media_type(path: Path) -> str:
    """The media type of a file of ours."""
    return MEDIA_TYPES.get(path.suffix.lower(), "application/octet-stream")


async def preview_of(room: PictureRoom, paths: Sequence[Path]) -> Shown | None:
    """One small picture that shows all files, numbered from 1 where they are several.

    None when they cannot be shown, for one that is gone perhaps.
    """
    try:
        sheet = await room.run(SheetTask(tuple(paths)))
    except LayerDiffuseError as error:
        logger.info("no preview: %s", error)
        return None
    return Shown(sheet.data, sheet.mime_type)


def image_content(shown: Shown) -> ImageContent:
    """A small picture as content."""
    return ImageContent(type="image", data=base64.b64encode(shown.data).decode(), mime_type=shown.mime_type)
