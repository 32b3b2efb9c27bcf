"""Cutting the subject out of pictures that exist."""

from pathlib import Path
from typing import Annotated

import anyio.to_thread
import psutil
from mcp.server.mcpserver import Context
from mcp_types import CallToolResult
from pydantic import BaseModel, Field

from layerdiffuse_mcp.api.fields import Omittable, OneOf
from layerdiffuse_mcp.api.outcome import EncodedFile, PictureFacts
from layerdiffuse_mcp.api.requests import PrepareRequest
from layerdiffuse_mcp.backends.pictures import PictureRoom
from layerdiffuse_mcp.errors import InvalidRequest, ModelNotFound, OutOfMemory
from layerdiffuse_mcp.families.matting import MATTING, MattingNetwork
from layerdiffuse_mcp.hub import catalog
from layerdiffuse_mcp.images import tasks
from layerdiffuse_mcp.images.describe import describe
from layerdiffuse_mcp.images.tasks import BORDER, CutOutTask, MatteTask, PictureTask
from layerdiffuse_mcp.installed import check
from layerdiffuse_mcp.outputs.names import file_name, words_in
from layerdiffuse_mcp.server.calls import run
from layerdiffuse_mcp.server.finished import done, picture_result, recorded
from layerdiffuse_mcp.server.results import URI, Alpha, alpha_facts, image_uri
from layerdiffuse_mcp.server.services import Keep, Services, services
from layerdiffuse_mcp.server.tools.consent import TO_USE
from layerdiffuse_mcp.server.tools.parameters import PictureFile, file_field
from layerdiffuse_mcp.settings import Settings
from layerdiffuse_mcp.wording import in_words


class CutOut(BaseModel):
    """A cut-out on disk."""

    path: str = Field(description="Absolute path of the file")
    uri: str = Field(description=URI)
    width: int = Field(description="In pixels")
    height: int = Field(description="In pixels")
    method: str = Field(description="How it was cut out")
    alpha: Omittable[Alpha] = Field(default=None, description="What its alpha holds")
    warnings: tuple[str, ...] = Field(default=(), description="What to look at before it is handed on")
    notes: tuple[str, ...] = Field(default=(), description="What was changed while pictures were read")


async def cut_out(
    ctx: Context[Services],
    image: Annotated[str, file_field("Picture with the subject: a path or an image id")],
    background: Omittable[
        Annotated[
            str,
            Field(
                min_length=1,
                max_length=4096,
                description="What lies behind the subject: a colour, or a path or an image id of the same scene "
                "without the subject; default: the one colour of the picture's border. border: that colour, only where "
                "it joins the border, so that white letters in a logo stay",
                examples=["white", "#00b140", "empty-scene.png", BORDER],
            ),
        ]
    ] = None,
    second_image: Omittable[
        Annotated[
            str,
            file_field(
                "The same subject, unmoved, before another background: alpha and colour are then exact, for glass and "
                "smoke too"
            ),
        ]
    ] = None,
    second_background: Omittable[
        Annotated[
            str,
            Field(min_length=1, max_length=4096, description="What lies behind it in second_image; as background"),
        ]
    ] = None,
    translucent: Annotated[
        bool,
        Field(
            description="The subject lets the background through inside, too (glass, smoke, glow, a soft shadow); its "
            "strongest colours are taken to be opaque. Without it only its edge is soft"
        ),
    ] = False,
    model: Omittable[
        Annotated[
            str,
            OneOf(tuple(MATTING), "matting network"),
            Field(description="For photographs: the matting network that finds the subject; no background is needed"),
        ]
    ] = None,
    output: Omittable[
        Annotated[
            PictureFile,
            Field(description="What file to make", examples=[{"name": "mug", "format": "webp", "preview": False}]),
        ]
    ] = None,
    *,
    fetch: Annotated[bool, TO_USE],
) -> Annotated[CallToolResult, CutOut]:
    """Cut the subject out of a picture: soft alpha, and its own colour without the background's.

    Give a picture before one colour as it is; one before a scene with background; the same subject before two
    backgrounds with second_image (exact); a photograph with model. Returns one RGBA file, facts on its alpha, a
    preview, and warnings where the result is doubtful.
    """
    known = services(ctx)
    made_as = output or PictureFile()
    format = made_as.format or "png"
    check_together(background, second_image, second_background, model, translucent=translucent)
    network = MATTING[model] if model is not None else None
    graph = await _graph(ctx, network, fetch=fetch) if network else None

    def task(keep: Keep) -> tuple[Path, PictureTask[tasks.CutOut]]:
        path = known.picture(image, keep)
        suffix, most = f".{format}", known.settings.max_pixels
        if network and graph:
            return path, MatteTask(path, graph, network, suffix, made_as.preview, most)
        return path, CutOutTask(
            path,
            _background(known, "background", background, keep),
            known.picture(second_image, keep) if second_image is not None else None,
            _background(known, "second_background", second_background, keep),
            translucent,
            joins_border(background),
            suffix,
            made_as.preview,
            most,
        )

    with known.contents.borrowing() as keep:
        path, given = await anyio.to_thread.run_sync(task, keep)
        if network:
            async with known.matting, PictureRoom(1, network.memory) as room:
                cut = await done(ctx, given, room)
        else:
            cut = await done(ctx, given)
    file = EncodedFile(
        name=file_name(made_as.name or words_in(path), None, "cutout", f".{format}"),
        data=cut.data,
        picture=PictureFacts(role="foreground", width=cut.width, height=cut.height, alpha=cut.alpha),
    )
    job, [made], _ = await recorded(known, "cut_out", [file], (*cut.warnings, *cut.notes))
    facts = CutOut(
        path=str(made.path), uri=image_uri(job, 1), width=made.width, height=made.height, method=cut.how,
        alpha=alpha_facts(made.alpha), warnings=cut.warnings, notes=cut.notes,
    )  # fmt: skip
    lines = [f"Cut out {cut.how}: {made.path} ({made.width}x{made.height}): {describe(cut.alpha)}"]
    lines += [f"Warning: {warning}" for warning in cut.warnings]
    lines += cut.notes
    return picture_result(job, made, lines, cut.preview, facts)


def check_together(
    background: str | None,
    second_image: str | None,
    second_background: str | None,
    model: str | None,
    *,
    translucent: bool,
) -> None:
    """Refuse parameters that mean nothing together."""
    if model is not None and (translucent or background or second_image or second_background):
        raise InvalidRequest(
            "model finds the subject without knowing the background: give either model, or background, second_image, "
            "second_background and translucent."
        )
    if second_background is not None and second_image is None:
        raise InvalidRequest("second_background is what lies behind second_image: give that picture too.")
    if second_image is not None and joins_border(background):
        raise InvalidRequest(
            "With second_image every alpha is found exactly: leave background out, or give its colour."
        )
    if second_image is not None and translucent:
        raise InvalidRequest("With second_image every alpha is found exactly: leave translucent out.")


def joins_border(background: str | None) -> bool:
    """Whether only what joins the picture's border is to be background."""
    return background is not None and background.strip().lower() == BORDER


async def _graph(ctx: Context[Services], network: MattingNetwork, *, fetch: bool) -> Path:
    """The network's file, fetched first where the settings or the user allow that; refuses what cannot run here."""
    settings = services(ctx).settings
    check_runs(network)
    if (fetch or settings.auto_download) and await anyio.to_thread.run_sync(_is_missing, network, settings):
        await run(ctx, PrepareRequest(model=network.name), "prepare_model", fetch=fetch)
    return await anyio.to_thread.run_sync(catalog.matting_file, network, settings)


def check_runs(network: MattingNetwork) -> None:
    """Make sure that a network can run on this machine.

    Raises:
        ModelNotFound: the extra is not installed.
        OutOfMemory: too little memory is free.
    """
    known = "A picture before one colour, or one whose empty scene is at hand, needs no model: give background."
    check(network.extra, network.name, known)
    free = psutil.virtual_memory().available
    if free < network.memory:
        raise OutOfMemory(
            f"{network.name} takes up to {in_words(network.memory)} of memory, and {in_words(free)} are free. Close "
            "other programs, or give background if the picture's background is known."
        )


def _is_missing(network: MattingNetwork, settings: Settings) -> bool:
    try:
        catalog.matting_file(network, settings)
    except ModelNotFound:
        return True
    return False


def _background(known: Services, name: str, given: str | None, keep: Keep) -> Path | tasks.Colour | None:
    """A colour, or the path of a picture, or neither."""
    from layerdiffuse_mcp.images.colour import colour_or_picture

    return (
        None
        if given is None or joins_border(given)
        else colour_or_picture(given, name, lambda file: known.picture(file, keep))
    )
