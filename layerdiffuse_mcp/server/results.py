"""What an agent gets back: a text that stands alone, one preview, links, structured facts.

Some clients show the model no picture, some no structured content: everything that
matters is in the text. Nothing here is larger for more or larger pictures, apart from one
line each.
"""

import base64
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mcp_types import CallToolResult, ContentBlock, ImageContent, ResourceLink, TextContent
from pydantic import BaseModel, Field

from layerdiffuse_mcp.api.fields import Omittable
from layerdiffuse_mcp.api.outcome import AlphaFacts, ImageResult, Outcome
from layerdiffuse_mcp.backends.pictures import PictureRoom
from layerdiffuse_mcp.errors import LayerDiffuseError
from layerdiffuse_mcp.images.describe import describe
from layerdiffuse_mcp.images.tasks import SheetTask, Shown
from layerdiffuse_mcp.jobs.job import Job, State
from layerdiffuse_mcp.server.services import IMAGES

MEDIA_TYPES = {
    ".png": "image/png",
    ".webp": "image/webp",
    ".psd": "image/vnd.adobe.photoshop",
    ".ora": "image/openraster",
    ".jpg": "image/jpeg",
    ".json": "application/json",
}

logger = logging.getLogger(__name__)


class Alpha(BaseModel):
    """Facts on the alpha channel; shares are 0..1 of all pixels."""

    transparent: float
    partial: float
    opaque: float
    bbox: Omittable[list[int]] = None
    edges_touched: list[str]
    has_transparency: bool


class PictureFacts(BaseModel):
    """One picture file; `alpha` is missing for an opaque layer, `box` for one that fills the picture."""

    role: str
    box: Omittable[list[int]] = Field(default=None, description="Where a layer that is no full picture lies, as bbox")
    path: str
    uri: str
    width: int
    height: int
    seed: int
    alpha: Omittable[Alpha] = None


class JobResult(BaseModel):
    """What is known of a job: its pictures once it is done, its progress before."""

    status: State
    job_id: str
    images: list[PictureFacts] = Field(
        default_factory=lambda: list[PictureFacts](),
        description="alpha shares are 0..1; bbox: left, top, right, bottom",
    )
    latents: list[str] = Field(default_factory=lambda: list[str](), description="Paths of saved latents")
    model: Omittable[str] = None
    timings: Omittable[dict[str, float]] = Field(default=None, description="Seconds by stage")
    warnings: list[str] = Field(default_factory=lambda: list[str]())
    recipe: Omittable[dict[str, Any]] = Field(default=None, description="Draws the same again")
    progress: Omittable[float] = Field(default=None, description="0..1, while it waits or runs")
    message: Omittable[str] = None
    seconds_left: Omittable[float] = Field(default=None, description="A guess")
    error: Omittable[str] = None


def structured(model: BaseModel) -> dict[str, Any]:
    """Structured content: plain JSON without nulls."""
    return model.model_dump(mode="json", exclude_none=True)


def plain(text: str, model: BaseModel) -> CallToolResult:
    """A result of text and facts."""
    return CallToolResult(content=[TextContent(type="text", text=text)], structured_content=structured(model))


def image_uri(job: Job, number: int) -> str:
    """The address of a job's picture, numbered from 1."""
    return f"{IMAGES}{job.id}-{number}"


def of_job(job: Job, message: str, shown: Shown | None = None) -> CallToolResult:
    """The result for a job in whatever state it is.

    Args:
        message: how far it is.
        shown: a preview of its pictures.
    """
    facts = facts_of(job, message)
    match job.state:
        case State.DONE:
            return _finished(job, facts, shown)
        case State.FAILED:
            text = f"{job.id} ({job.what}) failed: {facts.error}"
        case State.CANCELLED:
            text = f"{job.id} ({job.what}) was cancelled; it left no pictures."
        case _:
            left = f", about {facts.seconds_left:.0f} s left" if facts.seconds_left is not None else ""
            text = (
                f"{job.id} ({job.what}) is not finished yet: {job.progress.fraction:.0%}, {message}{left}. "
                f"Call get_job with job_id={job.id!r} to wait for its result, or cancel_job to stop it."
            )
    return plain(text, facts)


def facts_of(job: Job, message: str) -> JobResult:
    """The structured content for a job."""
    facts = JobResult(status=job.state, job_id=job.id)
    if not job.finished:
        left = job.seconds_left
        facts.progress, facts.message = round(job.progress.fraction, 4), message
        facts.seconds_left = None if left is None else round(left, 1)
    if job.error is not None:
        facts.error = str(job.error)
    if job.outcome is not None:
        _add_outcome(facts, job, job.outcome)
    return facts


def _add_outcome(facts: JobResult, job: Job, outcome: Outcome) -> None:
    facts.images = [_picture_facts(job, n, image) for n, image in enumerate(outcome.images, 1)]
    facts.latents = [str(path) for path in outcome.latents]
    facts.model = outcome.model or None
    facts.timings = {stage: round(spent, 3) for stage, spent in outcome.timings.model_dump().items() if spent}
    facts.warnings = list(outcome.warnings)
    facts.recipe = outcome.recipe


def _picture_facts(job: Job, number: int, image: ImageResult) -> PictureFacts:
    return PictureFacts(
        role=image.label,
        box=image.box and list(image.box),
        path=str(image.path),
        uri=image_uri(job, number),
        width=image.width,
        height=image.height,
        seed=image.seed,
        alpha=alpha_facts(image.alpha),
    )


def alpha_facts(facts: AlphaFacts | None) -> Alpha | None:
    """The same facts in their structured form."""
    return None if facts is None else Alpha.model_validate(facts.model_dump(mode="json"))


def _finished(job: Job, facts: JobResult, shown: Shown | None) -> CallToolResult:
    outcome = job.outcome
    assert outcome is not None
    lines = [_headline(job, outcome)]
    lines += [line_of(image) for image in outcome.images]
    lines += [f"latent: {path}" for path in outcome.latents]
    if shown is not None:
        lines.append("The attached picture is a small preview on a checkerboard; the files hold the real transparency.")
    lines += [f"Warning: {warning}" for warning in outcome.warnings]
    content: list[ContentBlock] = [TextContent(type="text", text="\n".join(lines))]
    if shown is not None:
        content.append(image_content(shown))
    content += [link_to(image.path, picture.uri) for image, picture in zip(outcome.images, facts.images, strict=True)]
    return CallToolResult(content=content, structured_content=structured(facts))


def _headline(job: Job, outcome: Outcome) -> str:
    count = len(outcome.images)
    made = f"{count} picture{'s' * (count != 1)}" if count else "nothing to show"
    spent = outcome.timings.total or job.seconds
    by = f" with {outcome.model}" if outcome.model else ""
    on = f" on {outcome.device}" if outcome.device else ""
    return f"{job.what} is done: {made} in {spent:.1f} s{by}{on} ({job.id})."


def line_of(image: ImageResult) -> str:
    """One picture in one line: where it is and what its alpha holds."""
    holds = "opaque layer" if image.alpha is None else describe(image.alpha)
    return f"{image.path} ({image.label}, {image.width}x{image.height}, seed {image.seed}): {holds}"


def link_to(path: Path, uri: str) -> ResourceLink:
    """A link that `resources/read` follows."""
    size = path.stat().st_size if path.is_file() else None
    return ResourceLink(type="resource_link", name=path.name, uri=uri, mime_type=media_type(path), size=size)


def media_type(path: Path) -> str:
    """The media type of a file of ours."""
    return MEDIA_TYPES.get(path.suffix.lower(), "application/octet-stream")


async def preview_of(room: PictureRoom, paths: Sequence[Path]) -> Shown | None:
    """One small picture that shows all files; None when they cannot be shown, for one that is gone perhaps."""
    try:
        sheet = await room.run(SheetTask(tuple(paths)))
    except LayerDiffuseError as error:
        logger.info("no preview: %s", error)
        return None
    return Shown(sheet.data, sheet.mime_type)


def image_content(shown: Shown) -> ImageContent:
    """A small picture as content."""
    return ImageContent(type="image", data=base64.b64encode(shown.data).decode(), mime_type=shown.mime_type)
