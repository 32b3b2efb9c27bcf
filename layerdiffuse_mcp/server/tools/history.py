"""The history: pictures that were made before, by this server or another, found and deleted."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

import anyio.to_thread
from mcp.server.mcpserver import Context
from mcp_types import CallToolResult
from pydantic import BaseModel, Field

from layerdiffuse_mcp.api.dates import FORMS
from layerdiffuse_mcp.api.fields import Omittable, OneOf
from layerdiffuse_mcp.api.outcome import VERDICTS, Verdict
from layerdiffuse_mcp.errors import ImageError, InvalidRequest
from layerdiffuse_mcp.jobs.queue import Jobs
from layerdiffuse_mcp.outputs.index import Entry
from layerdiffuse_mcp.outputs.query import SHAPES, wanted
from layerdiffuse_mcp.outputs.removal import GONE, Removed, named, remove
from layerdiffuse_mcp.recipes.recipe import read_recipe
from layerdiffuse_mcp.recipes.told import told_apart
from layerdiffuse_mcp.server.results import plain
from layerdiffuse_mcp.server.services import IMAGES, Services, local_path, services
from layerdiffuse_mcp.server.tools.parameters import file_field
from layerdiffuse_mcp.wording import in_words, printable

PAGE = 20
MOST_DELETED = 100
PROMPT = 200
"""Characters of a prompt that are repeated."""


class FoundImage(BaseModel):
    """A picture in a list; what is not known of it is left out."""

    image_id: Omittable[str] = Field(default=None, description="Id that tools take; missing: give its path instead")
    path: str = Field(description="Absolute path of the file")
    made: str = Field(description="When it was made, in this machine's time")
    role: Omittable[str] = Field(default=None, description="Which layer it is: foreground, background, blended, ...")
    width: Omittable[int] = Field(default=None, description="In pixels")
    height: Omittable[int] = Field(default=None, description="In pixels")
    seed: Omittable[int] = Field(default=None, description="Seed that draws it alone")
    model: Omittable[str] = Field(default=None, description="Base model that drew it; missing where none did")
    verdict: Omittable[Verdict] = Field(
        default=None, description="Whether it may be handed on, by its alpha and prompt"
    )
    prompt: Omittable[str] = Field(default=None, description="The beginning of its prompt")
    differs: Omittable[str] = Field(
        default=None, description="By what it was drawn otherwise than others of this page that have its prompt"
    )


class FoundImages(BaseModel):
    """A page of the pictures that were found, the newest first."""

    images: list[FoundImage] = Field(description="Those of this page, the newest first")
    total: int = Field(description="How many were found, on all pages")
    page: int = Field(description="This page's number, from 1")
    pages: int = Field(description="How many pages there are")


class DeletedFile(BaseModel):
    """A file that is gone, or would be."""

    path: str = Field(description="Where it was")
    bytes: int = Field(description="Its size")


class LeftFile(BaseModel):
    """A file that stays."""

    image: str = Field(description="Its path, or what was given where no picture is known by that")
    why: str = Field(description="Why it stays")


class DeletedImages(BaseModel):
    """What became of the files."""

    dry_run: bool = Field(description="True: nothing was deleted, this is what would be")
    deleted: list[DeletedFile] = Field(description="Pictures, each followed by what was made beside it")
    left: list[LeftFile] = Field(description="What stays, and why")
    bytes: int = Field(description="Size of all that is deleted")


async def find_images(
    ctx: Context[Services],
    words: Omittable[
        Annotated[
            str,
            Field(
                max_length=500,
                description="Words of the prompt (or name, of what was not drawn), all of them",
                examples=["red apple"],
            ),
        ]
    ] = None,
    since: Omittable[
        Annotated[str, Field(max_length=40, description=f"The earliest: {FORMS}", examples=["2026-03-01", "7d"])]
    ] = None,
    until: Omittable[
        Annotated[
            str, Field(max_length=40, description=f"The latest, a day included: {FORMS}", examples=["2026-03-05"])
        ]
    ] = None,
    model: Omittable[
        Annotated[str, Field(max_length=200, description="Base model that drew it, as list_models names it")]
    ] = None,
    role: Omittable[
        Annotated[
            str,
            Field(
                max_length=200,
                description="Which layer: foreground (cut-outs too), background, blended (both, as drawn), "
                "composed (put together from others), or a layer's name",
                examples=["foreground"],
            ),
        ]
    ] = None,
    size: Omittable[
        Annotated[
            str,
            Field(
                max_length=20,
                description=f"Width x height in pixels, or a shape: {', '.join(SHAPES)}",
                examples=["1024x768", "square"],
            ),
        ]
    ] = None,
    verdict: Omittable[
        Annotated[str, OneOf(VERDICTS, "verdict"), Field(description="The verdict that it got when it was made")]
    ] = None,
    page: Annotated[int, Field(ge=1, le=100_000, description=f"Which page of {PAGE} pictures, from 1")] = 1,
) -> Annotated[CallToolResult, FoundImages]:
    """Find pictures that were made before, also by an earlier server. Returns ids, paths, sizes and prompts, the newest
    first; without parameters of all. Any tool that takes a picture takes their ids and paths; those of a psd or ora
    compose_layers alone, as source.
    """
    index = services(ctx).jobs.index
    query = wanted(words=words, since=since, until=until, model=model, role=role, size=size, verdict=verdict)
    found = await anyio.to_thread.run_sync(index.search, query, PAGE, (page - 1) * PAGE)
    pages = max(1, -(-found.total // PAGE))
    if page > pages:
        last = f"{found.total} pictures were found, and the last page is {pages}"
        raise InvalidRequest(f"page: there is no page {page}; {last}.")
    apart = await anyio.to_thread.run_sync(_apart, found.entries)
    images = [_facts(entry, differs or None) for entry, differs in zip(found.entries, apart, strict=True)]
    facts = FoundImages(images=images, total=found.total, page=page, pages=pages)
    lines = [f"Found {found.total} picture{'s' * (found.total != 1)}, page {page} of {pages}, the newest first:"]
    if not found.total:
        lines = ["No picture was found. Leave out some of what is asked for, or look at all: find_images()."]
    lines += [_line(image) for image in facts.images]
    if not found.complete:
        lines.append("Pictures are still being read in: ask again in a moment for all of them.")
    return plain("\n".join(lines), facts)


async def delete_images(
    ctx: Context[Services],
    images: Annotated[
        list[Annotated[str, file_field("Id or path of a picture that was made here")]],
        Field(
            min_length=1,
            max_length=MOST_DELETED,
            description="Pictures to delete: ids or paths, as find_images lists them",
            examples=[["job-863032aa-1"]],
        ),
    ],
    dry_run: Annotated[bool, Field(description="Only say what would be deleted and what would stay")] = False,
) -> Annotated[CallToolResult, DeletedImages]:
    """Delete pictures that were made here, for good, with their latents, atlases, layer records and history.

    Files that are not ours, or were changed since, stay. Returns what was deleted, and what was left and why.
    """
    removed, unknown = await anyio.to_thread.run_sync(_remove, services(ctx).jobs, images, not dry_run)
    facts = DeletedImages(
        dry_run=dry_run,
        deleted=[DeletedFile(path=printable(file.path), bytes=file.bytes) for file in removed.deleted],
        left=[*(LeftFile(image=printable(file.path), why=file.why) for file in removed.left), *unknown],
        bytes=sum(file.bytes for file in removed.deleted),
    )
    count = len(facts.deleted)
    did = "Would delete" if dry_run else "Deleted"
    lines = [f"{did} {count} file{'s' * (count != 1)} ({in_words(facts.bytes)}):" if count else f"{did} nothing."]
    lines += [file.path for file in facts.deleted]
    lines += [f"Left {file.image}: {file.why}." for file in facts.left]
    return plain("\n".join(lines), facts)


def _remove(jobs: Jobs, given: list[str], really: bool) -> tuple[Removed, list[LeftFile]]:
    """Delete what is known; the others with the reason."""
    index = jobs.index
    entries: dict[str, Entry] = {}
    unknown: list[LeftFile] = []
    for name in given:
        why = f"no picture of that name was made below {printable(index.output)}; see find_images"
        try:
            entry = named(index, local_path(name.removeprefix(IMAGES)))
            if entry is None and _was_made(jobs, name.removeprefix(IMAGES)):
                why = GONE
        except ImageError as error:
            entry, why = None, str(error).removesuffix(".")
        if entry is not None:
            entries[str(entry.path)] = entry
        else:
            unknown.append(LeftFile(image=printable(name, 300), why=why))
    return remove(index, list(entries.values()), really=really), unknown


def _was_made(jobs: Jobs, name: str) -> bool:
    """Whether a job of this server has made the picture of that id or path."""
    images = (
        (f"{job.id}-{number}", str(image.path))
        for job in jobs.newest_first()
        if job.outcome
        for number, image in enumerate(job.outcome.images, 1)
    )
    return any(name in names for names in images)


def _apart(entries: Sequence[Entry]) -> list[str]:
    """Of each picture by what it differs from the others with its prompt; "" where by nothing that is known."""
    said = dict.fromkeys(range(len(entries)), "")
    alike: dict[str, list[int]] = {}
    for place, entry in enumerate(entries):
        alike.setdefault(beginning(entry) or "", []).append(place)
    for prompt, places in alike.items():
        if prompt and len(places) > 1:
            said |= zip(places, told_apart([_recipe(entries[place]) for place in places]), strict=True)
    return [*said.values()]


def _recipe(entry: Entry) -> dict[str, Any]:
    try:
        return read_recipe(entry.path)
    except ImageError:
        return {}


def _facts(entry: Entry, differs: str | None) -> FoundImage:
    return FoundImage(
        image_id=entry.id,
        path=printable(entry.path),
        made=made_at(entry),
        prompt=beginning(entry),
        differs=differs,
        **{name: getattr(entry, name) for name in ("role", "width", "height", "seed", "model", "verdict")},
    )


def made_at(entry: Entry) -> str:
    """When a picture was made, to the second."""
    return datetime.fromtimestamp(entry.time).isoformat(" ", "seconds")


def beginning(entry: Entry) -> str | None:
    """The beginning of a picture's prompt, on one line."""
    prompt = " ".join((entry.prompt or "").split())
    return (f"{prompt[: PROMPT - 1]}…" if len(prompt) > PROMPT else prompt) or None


def _line(image: FoundImage) -> str:
    size = f"{image.width}x{image.height}" if image.width else None
    seed = None if image.seed is None else f"seed {image.seed}"
    said = [image.image_id, image.made, image.role, size, seed, image.model, image.verdict]
    prompt = f' "{image.prompt}"' if image.prompt else ""
    differs = f" ({image.differs})" if image.differs else ""
    return f"{', '.join(part for part in said if part)}{prompt}{differs}: {image.path}"
