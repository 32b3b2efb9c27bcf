"""Transparent latents: the engine's own form of an RGBA picture, to files and back."""

from typing import Annotated

import anyio.to_thread
from mcp.server.mcpserver import Context
from mcp_types import CallToolResult
from pydantic import Field

from layerdiffuse_mcp.api.fields import ModelName, Omittable
from layerdiffuse_mcp.api.requests import DecodeRequest, EncodeRequest
from layerdiffuse_mcp.server.calls import run
from layerdiffuse_mcp.server.results import DrawingResult, LatentResult
from layerdiffuse_mcp.server.services import Services, services
from layerdiffuse_mcp.server.tools.consent import TO_USE
from layerdiffuse_mcp.server.tools.parameters import Delivery, Image, Waiting, fields_of, file_field


async def decode_transparent_latent(
    ctx: Context[Services],
    *,
    latent: Annotated[str, file_field("Path of a .safetensors latent that this server saved")],
    model: Omittable[ModelName] = None,
    output: Omittable[
        Annotated[Delivery, Field(description="How long to wait, and what file to make", examples=[{"format": "webp"}])]
    ] = None,
    fetch: Annotated[bool, TO_USE],
) -> Annotated[CallToolResult, DrawingResult]:
    """Decode a saved transparent latent; output.save_latent of a drawing tool saves one. Returns the path of an RGBA
    picture, with what its alpha holds and a small preview; or a job_id for get_job.
    """
    known, output = services(ctx), output or Delivery()

    def made() -> DecodeRequest:
        with known.contents.keeping() as keep, known.readable(latent) as opened:
            return DecodeRequest(latent=keep(opened), model=model, **fields_of(None, None, output))

    request = await anyio.to_thread.run_sync(made)
    return await run(
        ctx,
        request,
        "decode_transparent_latent",
        wait_seconds=output.wait_seconds,
        preview=output.preview,
        fetch=fetch,
        key=output.key,
    )


async def encode_transparent_image(
    ctx: Context[Services],
    *,
    image: Image,
    model: Omittable[ModelName] = None,
    output: Omittable[
        Annotated[Waiting, Field(description="How long to wait, and the file's name", examples=[{"name": "cup"}])]
    ] = None,
    fetch: Annotated[bool, TO_USE],
) -> Annotated[CallToolResult, LatentResult]:
    """Encode an RGBA picture into a transparent latent. Returns the path of a safetensors file, which
    decode_transparent_latent takes; or a job_id for get_job.
    """
    known, output = services(ctx), output or Waiting()

    def made() -> EncodeRequest:
        with known.contents.keeping() as keep:
            return EncodeRequest(image=known.picture(image, keep), model=model, **fields_of(None, None, output))

    request = await anyio.to_thread.run_sync(made)
    return await run(
        ctx, request, "encode_transparent_image", wait_seconds=output.wait_seconds, key=output.key, fetch=fetch
    )
