"""The drawing tools: each builds a `GenerateRequest` of what it is given, and runs it as a job."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import anyio.to_thread
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.resolve import Resolve
from mcp_types import CallToolResult
from pydantic import Field

from layerdiffuse_mcp.api.fields import DRAW_SEED, Count, Omittable, Prompt, Seed
from layerdiffuse_mcp.api.requests import GenerateRequest, validated
from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.families.spec import Role, Task
from layerdiffuse_mcp.server.calls import run
from layerdiffuse_mcp.server.results import DrawingResult
from layerdiffuse_mcp.server.services import Keep, Services, services
from layerdiffuse_mcp.server.tools.consent import Drawings, consent_to_draw
from layerdiffuse_mcp.server.tools.parameters import (
    Background,
    Blended,
    Foreground,
    GivenOptions,
    GivenOutput,
    Image,
    Mask,
    Options,
    OptionsWithCount,
    Output,
    Size,
    fields_of,
    width_and_height,
)

Files = Mapping[str, str | None]
"""Pictures as an agent names them, by the field or the layer that they are for."""


@dataclass(frozen=True)
class Wish:
    """What all drawing tools are told."""

    prompt: str
    size: str | None
    seed: int
    count: int
    options: Options | None
    output: Output | None
    fetch: bool = False


EXTRACTED: Mapping[frozenset[str], Task] = {
    frozenset({"blended", "background"}): Task.EXTRACT_FOREGROUND,
    frozenset({"blended", "foreground"}): Task.EXTRACT_BACKGROUND,
}
"""Tasks by the pictures given."""


def consent(task: Callable[..., Task]) -> Resolve:
    """Whether to fetch what a task's model lacks. `task` takes parameters of the tool by their names."""

    def drawings(prompt: str, options: Options | None, task: Annotated[Task, Resolve(task)]) -> Drawings:
        return lambda: [validated(GenerateRequest, fields_of(prompt, options) | {"task": task})]

    return consent_to_draw(drawings)


def _transparent() -> Task:
    return Task.TRANSPARENT


def _layers() -> Task:
    return Task.LAYERS


def _want(which: str, example: str) -> Any:
    description = f"What to draw: {which}; default: both"
    return Field(min_length=1, max_length=2, description=description, examples=[[example]])


WantBackground = Annotated[
    list[Literal["background", "blended"]],
    _want("the new layer, or blended, the finished picture with both together", "blended"),
]
WantForeground = Annotated[
    list[Literal["foreground", "blended"]],
    _want("the new layer (composed comes with it), or blended, the model's sketch of both together", "foreground"),
]


def _background_task(want: Collection[Role] | None) -> Task:
    return Task.BLENDED_FROM_FOREGROUND if _only_blended(want) else Task.BACKGROUND_FROM_FOREGROUND


def _foreground_task(want: Collection[Role] | None) -> Task:
    return Task.BLENDED_FROM_BACKGROUND if _only_blended(want) else Task.FOREGROUND_FROM_BACKGROUND


def _extracted(blended: str | None, foreground: str | None, background: str | None) -> Task:
    """The task that the pictures given make."""
    pictures = {"blended": blended, "foreground": foreground, "background": background}
    given = frozenset(name for name, file in pictures.items() if file is not None)
    if given not in EXTRACTED:
        ways = " or ".join(" and ".join(sorted(names)) for names in EXTRACTED)
        got = " and ".join(sorted(given))
        raise InvalidRequest(f"extract_layer takes {ways}, and got {got}. Give paths or image ids of exactly those.")
    return EXTRACTED[given]


def _only_blended(want: Collection[Role] | None) -> bool:
    return {*(want or ())} == {"blended"}


async def generate_transparent(
    ctx: Context[Services],
    *,
    prompt: Prompt,
    size: Omittable[Size] = None,
    seed: Seed = DRAW_SEED,
    count: Count = 1,
    options: Omittable[GivenOptions] = None,
    output: Omittable[GivenOutput] = None,
    fetch: Annotated[bool, consent(_transparent)],
) -> Annotated[CallToolResult, DrawingResult]:
    """Generate a transparent picture: subjects with real alpha (soft edges, glass, hair). Describe the subject alone: a
    background in the prompt spoils the cut-out. Returns the path of an RGBA picture for each seed, the best first, with
    a verdict, what its alpha holds, and one small preview; or, when it takes long, a job_id for get_job.
    """
    return await draw(
        ctx, "generate_transparent", Task.TRANSPARENT, {}, Wish(prompt, size, seed, count, options, output, fetch)
    )


async def edit_transparent(
    ctx: Context[Services],
    *,
    prompt: Prompt,
    image: Image,
    mask: Omittable[Mask] = None,
    size: Omittable[Size] = None,
    seed: Seed = DRAW_SEED,
    count: Count = 1,
    options: Omittable[GivenOptions] = None,
    output: Omittable[GivenOutput] = None,
    fetch: Annotated[bool, consent(_transparent)],
) -> Annotated[CallToolResult, DrawingResult]:
    """Edit a transparent picture: redraw one that has real alpha, or its masked part, after a prompt that says what it
    shows then; options.strength says how much of it changes. An opaque picture is refused: call cut_out on it first. A
    model that edits as it is told (list_models) takes it and does what the prompt says, such as "extract the dog".
    Returns the path of a new RGBA picture for each seed, with a verdict and what its alpha holds; or a job_id for
    get_job.
    """
    given = {"image": image, "mask": mask}
    wish = Wish(prompt, size, seed, count, options, output, fetch)
    return await draw(ctx, "edit_transparent", Task.TRANSPARENT, given, wish)


async def generate_layers(
    ctx: Context[Services],
    *,
    prompt: Prompt,
    size: Omittable[Size] = None,
    seed: Seed = DRAW_SEED,
    count: Count = 1,
    options: Omittable[GivenOptions] = None,
    output: Omittable[GivenOutput] = None,
    fetch: Annotated[bool, consent(_layers)],
) -> Annotated[CallToolResult, DrawingResult]:
    """Draw layers that match, at once: a transparent foreground, an opaque background, and blended, the finished
    picture with both together. prompt describes the whole, options.layer_prompts each layer. SD1.5 models. Returns the
    three paths for each seed, with a verdict; or a job_id for get_job.
    """
    wish = Wish(prompt, size, seed, count, options, output, fetch)
    return await draw(ctx, "generate_layers", Task.LAYERS, {}, wish)


async def generate_background_from_foreground(
    ctx: Context[Services],
    *,
    prompt: Prompt,
    foreground: Foreground,
    want: Omittable[WantBackground] = None,
    size: Omittable[Size] = None,
    seed: Seed = DRAW_SEED,
    count: Count = 1,
    options: Omittable[GivenOptions] = None,
    output: Omittable[GivenOutput] = None,
    task: Annotated[Task, Resolve(_background_task)],
    fetch: Annotated[bool, consent(_background_task)],
) -> Annotated[CallToolResult, DrawingResult]:
    """Given an RGBA subject, draw the background behind it, and blended, the finished picture with both together. The
    prompt describes the whole scene. For the reverse: generate_foreground_from_background. Returns their paths for each
    seed; or a job_id for get_job.
    """
    given = {"foreground": foreground}
    wish = Wish(prompt, size, seed, count, options, output, fetch)
    return await draw(ctx, "generate_background_from_foreground", task, given, wish, want)


async def generate_foreground_from_background(
    ctx: Context[Services],
    *,
    prompt: Prompt,
    background: Background,
    want: Omittable[WantForeground] = None,
    size: Omittable[Size] = None,
    seed: Seed = DRAW_SEED,
    count: Count = 1,
    options: Omittable[GivenOptions] = None,
    output: Omittable[GivenOutput] = None,
    task: Annotated[Task, Resolve(_foreground_task)],
    fetch: Annotated[bool, consent(_foreground_task)],
) -> Annotated[CallToolResult, DrawingResult]:
    """Draw a transparent foreground that fits a given background. The prompt describes the whole scene. Returns for
    each seed the foreground with a verdict; composed, the given picture itself at its full size with the foreground on
    it, and where that lies; and blended, the model's own sketch of both, redrawn small; or a job_id for get_job.
    """
    given = {"background": background}
    wish = Wish(prompt, size, seed, count, options, output, fetch)
    return await draw(ctx, "generate_foreground_from_background", task, given, wish, want)


async def extract_layer(
    ctx: Context[Services],
    *,
    prompt: Prompt,
    blended: Blended,
    foreground: Omittable[Foreground] = None,
    background: Omittable[Background] = None,
    size: Omittable[Size] = None,
    seed: Seed = DRAW_SEED,
    options: Omittable[
        Annotated[
            OptionsWithCount,
            Field(
                description="What is rarely set; whatever is left out is as advised",
                examples=[{"count": 2, "sampler": "Euler a"}],
            ),
        ]
    ] = None,
    output: Omittable[GivenOutput] = None,
    task: Annotated[Task, Resolve(_extracted)],
    fetch: Annotated[bool, consent(_extracted)],
) -> Annotated[CallToolResult, DrawingResult]:
    """Take a layer out of a finished picture by giving the other one: blended and background give the transparent
    foreground, blended and foreground the background. The prompt describes the layer that is wanted. SDXL models.
    Returns its path for each seed, with a verdict; or a job_id for get_job.
    """
    given = {"foreground": foreground, "background": background, "blended": blended}
    count = options and options.count
    wish = Wish(prompt, size, seed, count or 1, options, output, fetch)
    return await draw(ctx, "extract_layer", task, given, wish)


async def draw(
    ctx: Context[Services],
    what: str,
    task: Task,
    pictures: Files,
    wish: Wish,
    want: Collection[Role] | None = None,
) -> CallToolResult:
    """Run a task as a job, called `what`; returns its result, or a handle to wait for it."""
    known, output = services(ctx), wish.output or Output()

    def made() -> GenerateRequest:
        given = fields_of(wish.prompt, wish.options, output)
        given |= {"task": task, "seed": wish.seed, "count": wish.count}
        given |= width_and_height(wish.size, given.get("model"), known.settings)
        if want and len({*want}) == 1:
            given["want"] = [*want]
        with known.contents.keeping() as keep:
            return validated(GenerateRequest, with_copies(known, given, pictures, keep))

    request = await anyio.to_thread.run_sync(made)
    return await run(
        ctx, request, what, wait_seconds=output.wait_seconds, key=output.key, preview=output.preview, fetch=wish.fetch
    )


def with_copies(known: Services, fields: Mapping[str, Any], pictures: Files, keep: Keep) -> dict[str, Any]:
    """The fields of a request with its pictures, all by the paths of copies of them."""
    beside: dict[str, Any] = {}
    if controls := fields.get("control"):
        beside["control"] = [
            {**one, "image": known.picture(one["image"], keep)} if "image" in one else one for one in controls
        ]
    if poses := fields.get("poses"):
        beside["poses"] = [known.picture(pose, keep) for pose in poses]
    if reference := fields.get("reference"):
        named = {name: known.picture(reference[name], keep) for name in ("image", "mask") if name in reference}
        beside["reference"] = {**reference, **named}
    return {**fields, **copies(known, pictures, keep), **beside}


def copies(known: Services, pictures: Files, keep: Keep) -> dict[str, Any]:
    """The fields of a request for pictures, with the paths of copies of them."""
    kept = {name: known.picture(file, keep) for name, file in pictures.items() if file is not None}
    alone = {name: kept.pop(name) for name in ("image", "mask") if name in kept}
    return alone | ({"inputs": kept} if kept else {})
