"""Enlarging a transparent picture: it is redrawn in tiles, with detail that its smaller self did not have."""

from typing import Annotated

import anyio.to_thread
from mcp.server.mcpserver import Context
from mcp_types import CallToolResult
from pydantic import Field

from layerdiffuse_mcp.api.detail import STRENGTH, Scale, Strength
from layerdiffuse_mcp.api.fields import DRAW_SEED, Omittable, Prompt, Seed
from layerdiffuse_mcp.api.requests import GenerateRequest, validated
from layerdiffuse_mcp.server.calls import run
from layerdiffuse_mcp.server.results import DrawingResult
from layerdiffuse_mcp.server.services import Services, services
from layerdiffuse_mcp.server.tools.consent import Drawings, consent_to_draw
from layerdiffuse_mcp.server.tools.drawing import with_copies
from layerdiffuse_mcp.server.tools.parameters import GivenOutput, Image, Output, RedrawingWithCount, fields_of


def _drawings(prompt: str, options: RedrawingWithCount | None) -> Drawings:
    return lambda: [validated(GenerateRequest, fields_of(prompt, options))]


async def upscale_transparent(
    ctx: Context[Services],
    *,
    prompt: Prompt,
    image: Image,
    scale: Scale = 2.0,
    strength: Strength = STRENGTH,
    seed: Seed = DRAW_SEED,
    options: Omittable[
        Annotated[
            RedrawingWithCount,
            Field(
                description="What is rarely set; whatever is left out is as advised",
                examples=[{"negative_prompt": "blurry", "steps": 30}],
            ),
        ]
    ] = None,
    output: Omittable[GivenOutput] = None,
    fetch: Annotated[bool, consent_to_draw(_drawings)],
) -> Annotated[CallToolResult, DrawingResult]:
    """Upscale a transparent picture: enlarge it and redraw it with finer detail after a prompt that says what it
    shows, tile by tile, its edge and soft parts included. Takes about scale x scale x strength times as long as
    drawing it: on a processor that can be hours with a real base. compose_layers enlarges at once, without new
    detail. Returns the path of the RGBA picture for each seed, with a verdict; or a job_id for get_job.
    """
    known, output = services(ctx), output or Output()

    def made() -> GenerateRequest:
        given = fields_of(prompt, options, output)
        given |= {"seed": seed, "strength": 0, "detail": {"scale": scale, "strength": strength}}
        with known.contents.keeping() as keep:
            return validated(GenerateRequest, with_copies(known, given, {"image": image}, keep))

    request = await anyio.to_thread.run_sync(made)
    return await run(
        ctx,
        request,
        "upscale_transparent",
        wait_seconds=output.wait_seconds,
        key=output.key,
        preview=output.preview,
        fetch=fetch,
    )
