"""Transparent latents: the engine's own form of an RGBA picture, to files and back."""

from typing import Annotated

import anyio.to_thread
from mcp.server.mcpserver import Context
from mcp_types import CallToolResult

from layerdiffuse_mcp.api.fields import ModelName, Omittable
from layerdiffuse_mcp.api.requests import DecodeRequest, EncodeRequest
from layerdiffuse_mcp.server.calls import run
from layerdiffuse_mcp.server.results import JobResult
from layerdiffuse_mcp.server.services import Services, services
from layerdiffuse_mcp.server.tools.parameters import Image, Preview, Wait, file_field


async def decode_transparent_latent(
    ctx: Context[Services],
    latent: Annotated[str, file_field("Path of a .safetensors latent that this server saved")],
    model: Omittable[ModelName] = None,
    preview: Preview = True,
    wait_seconds: Omittable[Wait] = None,
) -> Annotated[CallToolResult, JobResult]:
    """Decode a saved transparent latent into an RGBA PNG and return its path. save_latent saves one."""
    known = services(ctx)

    def made() -> DecodeRequest:
        with known.contents.keeping() as keep, known.readable(latent) as opened:
            return DecodeRequest(latent=keep(opened), model=model)

    request = await anyio.to_thread.run_sync(made)
    return await run(ctx, request, "decode_transparent_latent", wait_seconds=wait_seconds, preview=preview)


async def encode_transparent_image(
    ctx: Context[Services],
    image: Image,
    model: Omittable[ModelName] = None,
    wait_seconds: Omittable[Wait] = None,
) -> Annotated[CallToolResult, JobResult]:
    """Encode an RGBA picture into a transparent latent, saved as safetensors; returns its path."""
    known = services(ctx)

    def made() -> EncodeRequest:
        with known.contents.keeping() as keep:
            return EncodeRequest(image=known.picture(image, keep), model=model)

    request = await anyio.to_thread.run_sync(made)
    return await run(ctx, request, "encode_transparent_image", wait_seconds=wait_seconds)
