"""What tools on finished pictures share: work in a picture process, and its files on disk as a job that has ended.

made = await done(ctx, CutOutTask(path))
job = await recorded(services(ctx), "cut_out", files)
"""

from collections.abc import Sequence
from datetime import datetime

import anyio
import anyio.to_thread
from mcp.server.mcpserver import Context
from mcp_types import CallToolResult, ContentBlock, TextContent
from pydantic import BaseModel

from layerdiffuse_mcp.api.outcome import EncodedFile, ImageResult, Outcome, Progress
from layerdiffuse_mcp.backends.pictures import PictureRoom
from layerdiffuse_mcp.errors import LayerDiffuseError
from layerdiffuse_mcp.images.tasks import PictureTask, ResultT, Shown
from layerdiffuse_mcp.jobs.job import Job
from layerdiffuse_mcp.jobs.queue import HEARTBEAT
from layerdiffuse_mcp.outputs.writer import save
from layerdiffuse_mcp.server.calls import Reporter
from layerdiffuse_mcp.server.results import image_content, image_uri, link_to, structured
from layerdiffuse_mcp.server.services import IMAGES, Services, services

ON_CHECKERBOARD = "The attached picture is a small preview on a checkerboard; the file holds the real transparency."
SMALL = "The attached picture is a small preview."


async def done(ctx: Context[Services], task: PictureTask[ResultT], room: PictureRoom | None = None) -> ResultT:
    """The task's result, from a room; the client hears how far it is after every change and once a heartbeat."""
    tell = Reporter(ctx)
    latest = Progress(fraction=0.0, message="starting")
    changed = anyio.Event()
    result: ResultT | LayerDiffuseError | None = None

    def report(progress: Progress) -> None:
        nonlocal latest
        latest = progress
        changed.set()

    async def keep_telling() -> None:
        nonlocal changed
        while True:
            with anyio.move_on_after(HEARTBEAT):
                await changed.wait()
            changed = anyio.Event()
            await tell(latest)

    async with anyio.create_task_group() as group:
        group.start_soon(keep_telling)
        try:
            result = await (room or services(ctx).pictures).run(task, report)
        except LayerDiffuseError as error:  # raised below, outside of the group, which would wrap it
            result = error
        group.cancel_scope.cancel()
    if isinstance(result, LayerDiffuseError):
        raise result
    assert result is not None
    return result


async def recorded(
    known: Services,
    what: str,
    files: Sequence[EncodedFile],
    warnings: Sequence[str] = (),
    now: datetime | None = None,
) -> tuple[Job, list[ImageResult], list[str]]:
    """The files on disk, as a job that has ended: its pictures have ids. Also its pictures, and the others' paths."""
    kept: tuple[Job, list[ImageResult], list[str]] | None = None
    with anyio.CancelScope(shield=True):  # a file that is on disk is announced
        paths = await anyio.to_thread.run_sync(lambda: save(known.settings.output, files, now=now))
        pairs = list(zip(files, paths, strict=True))
        images = [ImageResult(path=path, **dict(file.picture)) for file, path in pairs if file.picture]
        others = [path for file, path in pairs if not file.picture]
        job = known.jobs.record(what, Outcome(images=tuple(images), warnings=tuple(warnings)))
        await anyio.to_thread.run_sync(known.jobs.index.add, images, "", job.id, others)
        kept = job, images, [str(path) for path in others]
    assert kept is not None
    return kept


def picture_result(
    job: Job, image: ImageResult, lines: Sequence[str], shown: Shown | None, facts: BaseModel
) -> CallToolResult:
    """A result of one picture: text that stands alone, a preview, a link, and facts."""
    about = ON_CHECKERBOARD if image.alpha is not None and image.alpha.opaque < 1 else SMALL
    id = image_uri(job, 1).removeprefix(IMAGES)
    text = [*lines[:1], f"Its image id: {id}.", *([about] if shown else []), *lines[1:]]
    content: list[ContentBlock] = [TextContent(type="text", text="\n".join(text))]
    content += [image_content(shown)] if shown else []
    content.append(link_to(image.path, image_uri(job, 1)))
    return CallToolResult(content=content, structured_content=structured(facts))
