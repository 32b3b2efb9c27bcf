"""Taking a finished picture apart into its layers."""

from typing import Annotated, Any

import anyio.to_thread
from mcp.server.mcpserver import Context
from mcp_types import CallToolResult
from pydantic import Field

from layerdiffuse_mcp.api.fields import (
    DRAW_SEED,
    Depth,
    DocumentFormat,
    Guidance,
    LayerCount,
    ModelName,
    NegativePrompt,
    NoiseSource,
    Omittable,
    Prompt,
    Seed,
    Steps,
)
from layerdiffuse_mcp.api.requests import LAYERS, GenerateRequest, apart, validated
from layerdiffuse_mcp.server.calls import run
from layerdiffuse_mcp.server.results import JobResult
from layerdiffuse_mcp.server.services import Services, services
from layerdiffuse_mcp.server.tools.consent import Drawings, consent_to_draw
from layerdiffuse_mcp.server.tools.drawing import copies
from layerdiffuse_mcp.server.tools.parameters import Delivery, Described, Metadata, file_field


class ApartOptions(Described):
    """What is rarely set; whatever is left out is as the model's authors advise."""

    model: Omittable[ModelName] = None
    negative_prompt: Omittable[NegativePrompt] = None
    steps: Omittable[Steps] = None
    guidance_scale: Omittable[Guidance] = None
    noise_source: Omittable[NoiseSource] = None
    document: Omittable[DocumentFormat] = None


class ApartOutput(Delivery):
    """What files are made."""

    metadata: Omittable[Metadata] = None


def _fields(prompt: str, options: ApartOptions | None) -> dict[str, Any]:
    return apart({"prompt": prompt, **(options.given if options else {})})


def _drawings(prompt: str, options: ApartOptions | None) -> Drawings:
    return lambda: [validated(GenerateRequest, _fields(prompt, options))]


async def decompose_image(
    ctx: Context[Services],
    *,
    image: Annotated[str, file_field("Any picture, or a layer of one: a path or an image id")],
    prompt: Prompt,
    layers: LayerCount = LAYERS,
    depth: Depth = 1,
    seed: Seed = DRAW_SEED,
    options: Omittable[
        Annotated[
            ApartOptions,
            Field(description="What is rarely set; whatever is left out is as advised", examples=[{"document": "psd"}]),
        ]
    ] = None,
    output: Omittable[
        Annotated[
            ApartOutput, Field(description="How long to wait, and what files to make", examples=[{"name": "poster"}])
        ]
    ] = None,
    fetch: Annotated[bool, consent_to_draw(_drawings)],
) -> Annotated[CallToolResult, JobResult]:
    """Decompose any picture into RGBA layers, after a prompt that says what it shows, hidden parts included. Needs a
    model of its own (58 GB; hours without a large GPU). Returns each layer with name and box, lowest first, one file
    of all of them (ora, psd), and their composition with its difference from the picture: compose_layers takes that
    as source to change a layer; or a job_id for get_job.
    """
    known, output = services(ctx), output or ApartOutput()

    def made() -> GenerateRequest:
        given = _fields(prompt, options) | {"layers": layers, "depth": depth, "seed": seed}
        given |= {name: value for name, value in output.given.items() if name in ("name", "format", "metadata")}
        with known.contents.keeping() as keep:
            return validated(GenerateRequest, given | {"inputs": copies(known, {"blended": image}, keep)["inputs"]})

    request = await anyio.to_thread.run_sync(made)
    return await run(
        ctx,
        request,
        "decompose_image",
        wait_seconds=output.wait_seconds,
        key=output.key,
        preview=output.preview,
        fetch=fetch,
    )
