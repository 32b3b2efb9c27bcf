"""What this server has made, as resources: pictures, views of them, and jobs (JSON), newest first.

`layerdiffuse://images/{id}`, `layerdiffuse://jobs/{id}`; ids are those in tool results. Only finished work
of this server and of those before it is listed or read here, never another file. `layerdiffuse://images/{id}/view?width=512&format=jpg&crop=visible`
shows a picture otherwise without leaving a file: a process for pictures makes it, see `images.view`.
"""

import base64
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import anyio.to_thread
from mcp.server.lowlevel.helper_types import ReadResourceContents
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ResourceError, ResourceNotFoundError
from mcp.server.subscriptions import ResourcesListChanged, ResourceUpdated, SubscriptionBus
from mcp.shared.exceptions import MCPError
from mcp.shared.uri_template import UriTemplate
from mcp_types import (
    INVALID_PARAMS,
    Completion,
    CompletionArgument,
    CompletionContext,
    ListResourcesResult,
    PromptReference,
    Resource,
    ResourceTemplateReference,
)

from layerdiffuse_mcp.api.choices import SAMPLERS, SCHEDULES
from layerdiffuse_mcp.api.fields import near
from layerdiffuse_mcp.errors import InvalidRequest, LayerDiffuseError
from layerdiffuse_mcp.families.registry import METHODS
from layerdiffuse_mcp.hub import catalog
from layerdiffuse_mcp.hub.vocabulary import vocabulary_of
from layerdiffuse_mcp.images.tasks import CHECKERBOARD, VIEWED, ViewTask
from layerdiffuse_mcp.jobs.job import Job, State
from layerdiffuse_mcp.server.access import OpenedFile, open_readable
from layerdiffuse_mcp.server.icons import CLOCK, PICTURE
from layerdiffuse_mcp.server.results import facts_of, image_uri, media_type, structured
from layerdiffuse_mcp.server.services import IMAGES, JOBS, Services, services
from layerdiffuse_mcp.settings import Settings
from layerdiffuse_mcp.wording import in_words, quoted

VIEW = UriTemplate.parse(IMAGES + "{id}/view{?width,format,background,crop}")
PAGE = 50
VOCABULARY = {
    "subject": "subjects",
    "subjects": "subjects",
    "product": "subjects",
    "scene": "scenes",
    "style": "styles",
}
"""What completes a prompt's arguments, where the default model knows few words."""
SEVERAL = "subjects"
"""The argument that names several, separated by commas: the last of them is completed."""
LARGEST = 16_000_000
"""Bytes of a file that is sent: it goes as text in one message, and while that is written nobody else is answered."""
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
    """Add the templates."""

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
        str(VIEW),
        name="view",
        title="A view of a picture",
        icons=[PICTURE],
        description=(
            "A picture by its id as it is asked for, without a new file: width in pixels, at most 2048 and the "
            f"picture's own; format {', '.join(VIEWED)} (default png); background checkerboard or a colour, by default "
            "none (white for jpg); crop visible, or left,top,right,bottom in pixels. What would have more than 750 kB "
            "comes smaller"
        ),
        mime_type="image/png",
    )
    async def view(  # pyright: ignore[reportUnusedFunction]
        id: str,
        ctx: Context[Services],
        width: str | None = None,
        format: str | None = None,
        background: str | None = None,
        crop: str | None = None,
    ) -> bytes:
        known = services(ctx)
        if width is not None and not (width.isascii() and width.isdigit() and len(width) < 10):
            raise MCPError(INVALID_PARAMS, f"width: {quoted(width)} is no number of pixels; give 1 to 2048.")
        try:
            path = await anyio.to_thread.run_sync(known.image_path, id)
        except LayerDiffuseError as error:
            raise ResourceNotFoundError(str(error)) from error
        with known.contents.borrowing() as keep:
            try:
                copy = await anyio.to_thread.run_sync(_copied, path, known.settings, keep)
                pixels = int(width) if width else None
                task = ViewTask(copy, pixels, format, background, crop, known.settings.max_pixels)
                return (await known.pictures.run(task)).data
            except InvalidRequest as error:
                raise MCPError(INVALID_PARAMS, str(error)) from error
            except LayerDiffuseError as error:
                raise ResourceError(str(error)) from error

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


def check_view(uri: str) -> None:
    """Refuse parameters that no view has, which the SDK would pass over: MCPError."""
    if VIEW.match(uri) is None:
        return
    query = uri.partition("#")[0].partition("?")[2]
    for name in (pair.partition("=")[0] for pair in query.split("&") if pair):
        if name not in VIEW.query_variable_names:
            allowed = [name for name in VIEW.variable_names if name in VIEW.query_variable_names]
            raise MCPError(INVALID_PARAMS, f"A view has no parameter {quoted(name)}. {near(name, allowed)}")


def with_its_type(known: Services, uri: str, read: ReadResourceContents) -> ReadResourceContents:
    """What was read of a picture with the media type of its file: a template has one type for all of them."""
    if not uri.startswith(IMAGES):
        return read
    if (wanted := VIEW.match(uri)) is not None:
        return replace(read, mime_type=VIEWED[str(wanted.get("format") or "png").strip().lower()])
    return replace(read, mime_type=media_type(known.image_path(uri)))


def complete(
    known: Services, reference: PromptReference | ResourceTemplateReference, argument: CompletionArgument
) -> Completion:
    """Values for what has been typed of an argument: ids of pictures and jobs, models, samplers, schedules."""
    before, comma, last = argument.value.rpartition(",") if argument.name == SEVERAL else ("", "", argument.value)
    typed = last.strip().lower()
    match reference:
        case ResourceTemplateReference(uri=uri) if uri.startswith(IMAGES) and argument.name == "id":
            choices = [_image_id(job, n) for job in known.jobs.newest_first() for n in _numbers(job)]
        case ResourceTemplateReference(uri=uri) if uri.startswith(JOBS):
            choices = [job.id for job in known.jobs.newest_first()]
        case _:
            choices = _values(argument.name, known.settings)
    matching = [choice for choice in choices if typed in choice.lower()]
    matching.sort(key=lambda choice: not choice.lower().startswith(typed))
    start = f"{before}, " if comma else ""
    return Completion(
        values=[start + choice for choice in matching[:COMPLETIONS]],
        total=len(matching),
        has_more=len(matching) > COMPLETIONS,
    )


async def completed(
    known: Services,
    reference: PromptReference | ResourceTemplateReference,
    argument: CompletionArgument,
    context: CompletionContext | None = None,
) -> Completion:
    """`complete`, in a thread: models are looked up on disk."""
    return await anyio.to_thread.run_sync(complete, known, reference, argument)


def _values(name: str, settings: Settings) -> list[str]:
    tables = {
        "sampler": SAMPLERS,
        "schedule": SCHEDULES,
        "method": METHODS,
        "format": VIEWED,
        "background": (CHECKERBOARD, "white", "black"),
        "crop": ("visible",),
    }
    if name == "model":
        return [entry.name for entry in catalog.models(settings)]
    if name in VOCABULARY:
        known = vocabulary_of(catalog.find(None, settings))
        return [*getattr(known, VOCABULARY[name])] if known else []
    return list(tables.get(name, ()))


def _entries(job: Job) -> list[Resource]:
    facts: list[Resource] = [
        Resource(uri=JOBS + job.id, name=job.id, title=f"{job.what}, {job.state.value}", mime_type="application/json")
    ]
    for number in _numbers(job):
        made = job.image(number)
        assert made is not None
        if os.path.isfile(made.path):
            facts.append(_image_entry(job, number, made.path))
    return facts


def _image_entry(job: Job, number: int, path: Path) -> Resource:
    size = path.stat().st_size
    return Resource(uri=image_uri(job, number), name=path.name, title=str(path), mime_type=media_type(path), size=size)


def _content(path: Path, settings: Settings) -> bytes:
    """The bytes of a picture of ours, if the file in its place is one below the output folder."""
    with _opened(path, settings) as opened:
        if opened.size > LARGEST:
            raise ResourceError(
                f"{opened.shown} has {in_words(opened.size)}, and at most {in_words(LARGEST)} are sent. Open it by its "
                "path, or read a smaller view of it: the same address with /view?width=1024 behind it."
            )
        return opened.file.read()


def _opened(path: Path, settings: Settings) -> OpenedFile:
    try:
        return open_readable(path, settings.model_copy(update={"read_dirs": (settings.output,)}))
    except LayerDiffuseError as error:
        raise ResourceError(f"{path} is gone, or something else is in its place. {error}") from error


def _copied(path: Path, settings: Settings, keep: Callable[[OpenedFile], Path]) -> Path:
    """A copy of a picture of ours for the process that shows it; errors as `_content`."""
    with _opened(path, settings) as opened:
        return keep(opened)


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
