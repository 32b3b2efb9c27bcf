"""Sets: pictures of several subjects in one style, on canvases of one size, in one call."""

from collections.abc import Callable
from typing import Annotated, Any

import anyio.to_thread
from mcp.server.mcpserver import Context
from mcp_types import CallToolResult
from pydantic import Field

from layerdiffuse_mcp.api.cells import AS_DRAWN, Cell
from layerdiffuse_mcp.api.fields import DRAW_SEED, MAX_PROMPT_CHARACTERS, MAX_SEED, Omittable, OneOf, bounded
from layerdiffuse_mcp.api.requests import MAX_SUBJECTS, SetRequest
from layerdiffuse_mcp.api.sets import SEEDS, set_of
from layerdiffuse_mcp.server.calls import run
from layerdiffuse_mcp.server.results import JobResult
from layerdiffuse_mcp.server.services import Services, services
from layerdiffuse_mcp.server.tools.consent import Drawings, consent_to_draw
from layerdiffuse_mcp.server.tools.drawing import with_copies
from layerdiffuse_mcp.server.tools.parameters import GivenOutput, Output, SetOptions, fields_of, tagged


def _drawings(subjects: list[str], style: str, options: SetOptions | None) -> Drawings:
    """What the set's pictures are drawn by, as far as that says which files they need."""
    return lambda: _request(subjects, style, options=options).pictures


def _request(
    subjects: list[str],
    style: str,
    kept: Callable[[dict[str, Any]], dict[str, Any]] = lambda fields: fields,
    *,
    options: SetOptions | None,
    output: Output | None = None,
    **others: Any,
) -> SetRequest:
    """The request for a set. kept: of the fields that all drawings have, those that name pictures by copies."""
    loras = options.loras if options and options.loras else {}
    return set_of(subjects, tagged(style, loras), fields=kept(fields_of(None, options, output)), **others)


async def generate_set(
    ctx: Context[Services],
    *,
    subjects: Annotated[
        list[Annotated[str, Field(max_length=MAX_PROMPT_CHARACTERS)]],
        Field(
            description=f"What to draw, 1 to {MAX_SUBJECTS} subjects: one picture of each, in this order; equal ones "
            "need seeds counted",
            examples=[["a sword", "a shield", "a red potion"]],
        ),
    ],
    style: Annotated[
        str,
        Field(
            max_length=MAX_PROMPT_CHARACTERS,
            description="What all have in common, said once: it is put behind each subject",
            examples=["flat icon, thick outline"],
        ),
    ] = "",
    seed: Annotated[int, bounded(DRAW_SEED, MAX_SEED, "The first picture's; -1 (default) draws one and reports it")] = (
        DRAW_SEED
    ),
    seeds: Annotated[
        str,
        OneOf(tuple(SEEDS), "policy for seeds"),
        Field(description="; ".join(f"{name}: {what}" for name, what in SEEDS.items())),
    ] = "same",
    cell: Omittable[
        Annotated[
            Cell,
            Field(
                description="The canvas of every picture, and how it lies there",
                examples=[{"size": "64x64", "anchor": "bottom"}],
            ),
        ]
    ] = None,
    sheet: Annotated[
        bool, Field(description="Also put all into one sheet, with its atlas as JSON for Phaser, PixiJS and others")
    ] = True,
    options: Omittable[
        Annotated[
            SetOptions,
            Field(
                description="What is rarely set; whatever is left out is as advised",
                examples=[{"negative_prompt": "blurry", "steps": 30}],
            ),
        ]
    ] = None,
    output: Omittable[GivenOutput] = None,
    fetch: Annotated[bool, consent_to_draw(_drawings)],
) -> Annotated[CallToolResult, JobResult]:
    """Generate a set: icons, sprites or stickers of several subjects in one style, each alone on a transparent canvas
    of one size, as one job. Describe each subject alone, without a background. Returns for each subject the path of an
    RGBA picture, with a verdict; the sheet with its two atlas files; and one preview, numbered in the order of the
    subjects; or a job_id for get_job. redraw_image draws one of them again, as it was before it went into its cell.
    """
    output = output or Output()

    known = services(ctx)

    def made() -> SetRequest:
        with known.contents.keeping() as keep:
            return _request(
                subjects,
                style,
                lambda fields: with_copies(known, fields, {}, keep),
                seed=seed,
                seeds=seeds,
                cell=cell or AS_DRAWN,
                sheet=sheet,
                options=options,
                output=output,
            )

    request = await anyio.to_thread.run_sync(made)
    return await run(
        ctx,
        request,
        "generate_set",
        wait_seconds=output.wait_seconds,
        key=output.key,
        preview=output.preview,
        fetch=fetch,
    )
