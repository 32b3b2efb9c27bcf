"""Transparent latents: the engine's own form of an RGBA picture, to files and back."""

from typing import Annotated

import anyio.to_thread
from mcp.server.mcpserver import Context
from mcp_types import CallToolResult

from layerdiffuse_mcp.requests import DecodeRequest, EncodeRequest
from layerdiffuse_mcp.server.declare import WRITES, Declaration
from layerdiffuse_mcp.server.results import JobResult
from layerdiffuse_mcp.server.running import run
from layerdiffuse_mcp.server.services import Services, services
from layerdiffuse_mcp.server.tools.parameters import Model, Preview, Wait, named


async def decode_transparent_latent(
    ctx: Context[Services],
    latent: Annotated[str, named("Path of a .safetensors latent")],
    model: Model | None = None,
    preview: Preview = True,
    wait_seconds: Wait | None = None,
) -> CallToolResult:
    """Decode a saved transparent latent into an RGBA PNG. generate_transparent saves one with save_latent."""
    known = services(ctx)

    def made() -> DecodeRequest:
        with known.contents.keeping() as keep, known.readable(latent) as opened:
            return DecodeRequest(latent=keep(opened), model=model)

    request = await anyio.to_thread.run_sync(made)
    return await run(ctx, request, "decode_transparent_latent", wait_seconds=wait_seconds, preview=preview)


async def encode_transparent_image(
    ctx: Context[Services],
    image: Annotated[str, named("RGBA, path or image id")],
    model: Model | None = None,
    wait_seconds: Wait | None = None,
) -> CallToolResult:
    """Encode an RGBA picture into a transparent latent, saved as safetensors."""
    known = services(ctx)

    def made() -> EncodeRequest:
        with known.contents.keeping() as keep:
            return EncodeRequest(image=known.picture(image, keep), model=model)

    request = await anyio.to_thread.run_sync(made)
    return await run(ctx, request, "encode_transparent_image", wait_seconds=wait_seconds)


TOOLS = (
    Declaration(decode_transparent_latent, "Decode a transparent latent", WRITES, JobResult, levels=0),
    Declaration(encode_transparent_image, "Encode a picture into a transparent latent", WRITES, JobResult, levels=0),
)
