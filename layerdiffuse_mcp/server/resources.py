"""What this server has made, as resources: pictures (PNG) and jobs (JSON), newest first.

`layerdiffuse://images/{id}` and `layerdiffuse://jobs/{id}`; ids are those in tool results.
Only this server's own finished work is listed or read here, never another file.
"""

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio.to_thread
from mcp.server.lowlevel.helper_types import ReadResourceContents
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ResourceError, ResourceNotFoundError
from mcp.server.subscriptions import ResourcesListChanged, ResourceUpdated, SubscriptionBus
from mcp_types import (
    Completion,
    CompletionArgument,
    CompletionContext,
    ListResourcesResult,
    PromptReference,
    Resource,
    ResourceTemplateReference,
)

from layerdiffuse_mcp.api.choices import SAMPLERS, SCHEDULES
from layerdiffuse_mcp.errors import LayerDiffuseError
from layerdiffuse_mcp.families.registry import METHODS
from layerdiffuse_mcp.hub import catalog
from layerdiffuse_mcp.jobs.job import Job, State
from layerdiffuse_mcp.server.access import open_readable
from layerdiffuse_mcp.server.icons import CLOCK, PICTURE
from layerdiffuse_mcp.server.results import facts_of, image_uri, media_type, structured
from layerdiffuse_mcp.server.services import IMAGES, JOBS, Services, services
from layerdiffuse_mcp.settings import Settings

PAGE = 50
COMPLETIONS = 100
"""Most values that the protocol lets a completion have."""


def page(known: Services, cursor: str | None) -> ListResourcesResult:
    """One page of the list; raises ValueError for a cursor that is not ours."""
    start = _start(cursor)
    found = [entry for job in known.jobs.newest_first() if job.finished for entry in _entries(job)]
    after = start + PAGE
    more = base64.urlsafe_b64encode(f"from:{after}".encode()).decode() if after < len(found) else None
    return ListResourcesResult(resources=found[start:after], next_cursor=more)


def add_resources(server: MCPServer[Services]) -> None:
    """Add the two templates."""

    @server.resource(
        IMAGES + "{id}",
        name="image",
        title="A picture of this server",
        icons=[PICTURE],
        description="A picture by the id that its tool result gave: PNG, or the format that it was made in",
        mime_type="image/png",
    )
    async def image(id: str, ctx: Context[Services]) -> bytes:  # pyright: ignore[reportUnusedFunction]
        known = services(ctx)
        try:
            path = await anyio.to_thread.run_sync(known.image_path, id)
        except LayerDiffuseError as error:
            raise ResourceNotFoundError(str(error)) from error
        return await anyio.to_thread.run_sync(_content, path, known.settings)

    @server.resource(
        JOBS + "{id}",
        name="job",
        title="A job of this server",
        icons=[CLOCK],
        description="A job's state and result by its id",
        mime_type="application/json",
    )
    async def job(id: str, ctx: Context[Services]) -> str:  # pyright: ignore[reportUnusedFunction]
        known = services(ctx)
        try:
            found = known.jobs.get(id)
        except LayerDiffuseError as error:
            raise ResourceNotFoundError(str(error)) from error
        return json.dumps(structured(facts_of(found, known.jobs.progress(found).message)), indent=2)


async def tell_end(bus: SubscriptionBus, job: Job) -> None:
    """Tell whoever has subscribed that a job has ended, and that there is more to list."""
    await bus.publish(ResourceUpdated(uri=JOBS + job.id))
    await bus.publish(ResourcesListChanged())


def with_its_type(known: Services, uri: str, read: ReadResourceContents) -> ReadResourceContents:
    """What was read of a picture with the media type of its file: the template has one type for all of them."""
    if not uri.startswith(IMAGES):
        return read
    return replace(read, mime_type=media_type(known.image_path(uri)))


def complete(
    known: Services, reference: PromptReference | ResourceTemplateReference, argument: CompletionArgument
) -> Completion:
    """Values for what has been typed of an argument: ids of pictures and jobs, models, samplers, schedules."""
    typed = argument.value.lower()
    match reference:
        case ResourceTemplateReference(uri=uri) if uri.startswith(IMAGES):
            choices = [_image_id(job, n) for job in known.jobs.newest_first() for n in _numbers(job)]
        case ResourceTemplateReference(uri=uri) if uri.startswith(JOBS):
            choices = [job.id for job in known.jobs.newest_first()]
        case _:
            choices = _values(argument.name, known.settings)
    matching = [choice for choice in choices if typed in choice.lower()]
    matching.sort(key=lambda choice: not choice.lower().startswith(typed))
    return Completion(values=matching[:COMPLETIONS], total=len(matching), has_more=len(matching) > COMPLETIONS)


async def completed(
    known: Services,
    reference: PromptReference | ResourceTemplateReference,
    argument: CompletionArgument,
    context: CompletionContext | None = None,
) -> Completion:
    """`complete`, in a thread: models are looked up on disk."""
    return await anyio.to_thread.run_sync(complete, known, reference, argument)


def _values(name: str, settings: Settings) -> list[str]:
    tables = {"sampler": SAMPLERS, "schedule": SCHEDULES, "method": METHODS}
    if name == "model":
        return [entry.name for entry in catalog.models(settings)]
    return list(tables.get(name, ()))


def _entries(job: Job) -> list[Resource]:
    facts: list[Resource] = [
        Resource(uri=JOBS + job.id, name=job.id, title=f"{job.what}, {job.state.value}", mime_type="application/json")
    ]
    for number in _numbers(job):
        made = job.image(number)
        assert made is not None
        facts.append(_image_entry(job, number, made.path))
    return facts


def _image_entry(job: Job, number: int, path: Path) -> Resource:
    size: dict[str, Any] = {"size": path.stat().st_size} if path.is_file() else {}
    return Resource(uri=image_uri(job, number), name=path.name, title=str(path), mime_type=media_type(path), **size)


def _content(path: Path, settings: Settings) -> bytes:
    """The bytes of a picture of ours, if the file in its place is one below the output folder."""
    try:
        with open_readable(path, settings.model_copy(update={"read_dirs": (settings.output,)})) as opened:
            return opened.file.read()
    except LayerDiffuseError as error:
        raise ResourceError(f"{path} is gone, or something else is in its place. {error}") from error


def _numbers(job: Job) -> range:
    return range(1, len(job.outcome.images) + 1) if job.outcome and job.state is State.DONE else range(0)


def _image_id(job: Job, number: int) -> str:
    return image_uri(job, number).removeprefix(IMAGES)


def _start(cursor: str | None) -> int:
    if cursor is None:
        return 0
    text = base64.urlsafe_b64decode(cursor.encode()).decode()
    if not text.startswith("from:"):
        raise ValueError(cursor)
    return int(text.removeprefix("from:"))
