"""The picture tasks that cut a subject out: files in, an encoded cut-out and what to doubt about it out.

    cut_out(CutOutTask(path), report)                # before one colour, by its border
    matted(MatteTask(path, graph, network), report)  # a photograph

Sizes are checked by the headers before anything is decoded. N pixels of the picture take at most 38 bytes each, written
as WebP 44.
"""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from layerdiffuse_mcp.api.outcome import AlphaFacts, Progress
from layerdiffuse_mcp.errors import ImageError
from layerdiffuse_mcp.images.alpha import MAX_INVISIBLE, MIN_OPAQUE, Box, Bytes, alpha_facts
from layerdiffuse_mcp.images.cutout import Background, Cut, border_colour, cut_from_known, cut_from_two
from layerdiffuse_mcp.images.describe import percent
from layerdiffuse_mcp.images.export import check_side, webp_bytes
from layerdiffuse_mcp.images.matting import matte
from layerdiffuse_mcp.images.own_colour import with_own_colour
from layerdiffuse_mcp.images.png import png_bytes
from layerdiffuse_mcp.images.preview import preview
from layerdiffuse_mcp.images.read import Picture, picture_size, read_picture
from layerdiffuse_mcp.images.tasks import BORDER, Colour, CutOut, CutOutTask, MatteTask, Report, Shown

MIN_DEPTH = 4
"""Pixels that any edge may reach inside."""
MAX_CUT_PIXELS = 30_000_000
"""Of a picture that is cut out: what fits into the memory of a picture process."""
NOTHING, EVERYTHING = 0.001, 0.99
"""Shares of the pixels: below the one nothing is left, above the other everything was kept."""
MAX_FRAME = 0.1
"""Share of the pixels up to which a frame is taken for one: a wider margin is a background."""
MOSTLY = 0.5
"""Share of what is left that shows through, from which the background is doubted."""
DEEP, MUCH = 0.08, 0.03
"""How far inside, as a share of the subject's shorter side, what shows through is no edge any more; and how large a
share of what is left may."""
MAX_ENCLOSED = 0.002
MAX_CONTRADICTED = 0.01
LOSSY, LOSSY_NOISE = frozenset({"JPEG"}), 12 / 255
"""Formats whose pixels are off beside an edge, and how far a background may be off in them."""


def cut_out(task: CutOutTask, report: Report) -> CutOut:
    """Cut a subject out of what is known of its background."""
    say = _Stages(report)
    limit = min(task.max_pixels, MAX_CUT_PIXELS)
    given = (task.path, task.second, task.background, task.second_background)
    for path in given:
        if isinstance(path, Path):
            check_side(task.suffix, max(picture_size(path, limit)))
    notes: list[str] = []
    formats: set[str] = set()

    def read(path: Path) -> Bytes:
        say(0.0, f"reading {path.name[:80]}")
        picture = read_opaque(path, limit)
        formats.add(picture.format)
        notes.extend(f"{path.name}: {note}" for note in picture.notes)
        return picture.rgba

    def ground(below: Path | Colour | None, picture: Bytes) -> Background:
        return read(below) if isinstance(below, Path) else border_colour(picture, below)

    first = read(task.path)
    below = ground(task.background, first)
    if task.second is None:
        step = say.part(0.1, 0.7, "cutting out")
        noise = LOSSY_NOISE if formats & LOSSY else 0.0
        cut = cut_from_known(first, below, translucent=task.translucent, joined=task.joined, noise=noise, report=step)
        how = f"by {_words(below)}{' where it joins the border' * task.joined}"
    else:
        second = read(task.second)
        second_below = ground(task.second_background, second)
        say(0.3, "cutting out")
        cut = cut_from_two(first, second, below, second_below)
        how = f"exactly, by {_words(below)} and {_words(second_below)}"
    del first, below
    facts = alpha_facts(cut.rgba)
    doubts = _doubts(facts, cut, translucent=task.translucent or task.second is not None)
    return _result(cut.rgba, facts, how, notes, doubts, task, say)


def matted(task: MatteTask, report: Report) -> CutOut:
    """Cut a subject out of a photograph."""
    say = _Stages(report)
    limit = min(task.max_pixels, MAX_CUT_PIXELS)
    check_side(task.suffix, max(picture_size(task.path, limit)))
    say(0.0, f"reading {task.path.name[:80]}")
    picture = read_opaque(task.path, limit)
    alpha = matte(picture.rgba, task.graph, task.network, say.part(0.05, 0.6, f"running {task.network.name}"))
    rgba = with_own_colour(picture.rgba, alpha, say.part(0.6, 0.7, "taking the background out of the edge's colour"))
    notes = [f"{task.path.name}: {note}" for note in picture.notes]
    facts = alpha_facts(rgba)
    how = f"by the network {task.network.name}"
    return _result(rgba, facts, how, notes, _doubts(facts, Cut(rgba), translucent=False), task, say)


def read_opaque(path: Path, limit: int) -> Picture:
    """A picture that nothing shines through.

    Raises:
        ImageError: it is transparent already: its colour there is not seen, and says nothing of a background.
    """
    picture = read_picture(path, limit)
    seen_through = np.count_nonzero(picture.rgba[..., 3] < MIN_OPAQUE) / picture.rgba[..., 3].size
    if seen_through > NOTHING:
        raise ImageError(
            f"{path.name[:80]} is transparent already, in {percent(seen_through)} of its pixels; a cut-out is made of "
            "an opaque picture. Use it as it is, or first lay it on one colour: compose_layers with background."
        )
    return picture


def _doubts(facts: AlphaFacts, cut: Cut, *, translucent: bool) -> list[str]:
    """What an agent should look at before it hands the cut-out on."""
    left = 1 - facts.transparent
    if left < NOTHING:
        return ["Nothing is left: the whole picture was taken for background. Check background, or name a model."]
    doubts: list[str] = []
    if not facts.transparent:
        doubts.append("Everything was kept: no background was found. Check background, or name a model.")
    elif frame := _frame(facts, cut.rgba):
        left, top, right, bottom = frame
        doubts.append(
            f"Nearly everything was kept: all that was taken for background is a frame, {percent(facts.transparent)} "
            f"of the picture. If it was not to be cut out alone, crop it off first, as compose_layers does with x "
            f'{-left}, y {-top} and canvas={{"size": "{right - left}x{bottom - top}"}}; or name a model.'
        )
    elif facts.transparent < 1 - EVERYTHING:
        doubts.append(
            f"Nearly everything was kept: {percent(facts.transparent)} of the picture was taken for background. Check "
            "background, or name a model."
        )
    if cut.contradicted > MAX_CONTRADICTED:
        doubts.append(
            f"The two pictures contradict each other in {cut.contradicted:.0%} of what is left: the subject or its "
            "light changed between them, or a background is not what was said. Look for double edges; give two "
            "pictures that differ in the background alone, or leave second_image out."
        )
    if cut.enclosed > MAX_ENCLOSED:
        doubts.append(
            f"{cut.enclosed:.1%} of the picture has the background's colour and lies within the subject: these parts "
            f'became transparent. If they are no holes, give background="{BORDER}": then only what joins the '
            "picture's border goes. Or draw the subject before another colour, or name a model."
        )
    if not translucent and facts.partial > MOSTLY * left:
        doubts.append(
            f"{facts.partial / left:.0%} of what is left shows through. Check background; for glass, smoke, glow or a "
            "soft shadow set translucent."
        )
    elif not translucent and (deep := _shows_through_inside(cut.rgba, facts)) > MUCH * left:
        doubts.append(
            f"{deep / left:.0%} of what is left shows through far from its edge: there the subject is nearly as dark "
            "or as bright as the background, as a shaded side on black is. Photograph or draw it before another "
            "colour, or name a model; for glass, smoke, glow or a soft shadow set translucent."
        )
    return doubts


def _frame(facts: AlphaFacts, rgba: Bytes) -> Box | None:
    """The rectangle that is left of a picture where little more than a frame around that was cut out."""
    left, top, right, bottom = facts.bbox or (0, 0, 0, 0)
    filled = (1 - facts.transparent) * rgba.shape[0] * rgba.shape[1] >= EVERYTHING * (right - left) * (bottom - top)
    return facts.bbox if filled and not facts.edges_touched and facts.transparent < MAX_FRAME else None


def _shows_through_inside(rgba: Bytes, facts: AlphaFacts) -> float:
    """The share of all pixels that are partial and lie deeper within the subject than an edge reaches."""
    left, top, right, bottom = facts.bbox or (0, 0, 0, 0)
    alpha = np.pad(rgba[top:bottom, left:right, 3], 1)
    depth = cv2.distanceTransform((alpha > MAX_INVISIBLE).astype(np.uint8), cv2.DIST_L2, 3)
    inside = depth > max(MIN_DEPTH, DEEP * min(right - left, bottom - top))
    shows_through = inside & (alpha > MAX_INVISIBLE) & (alpha < MIN_OPAQUE)
    return np.count_nonzero(shows_through) / (rgba.shape[0] * rgba.shape[1])


def _words(background: Background) -> str:
    """A background in words."""
    if not isinstance(background, tuple):
        return "its background picture"
    return "the background colour #" + "".join(f"{round(part * 255):02x}" for part in background)


def _result(
    rgba: Bytes,
    facts: AlphaFacts,
    how: str,
    notes: list[str],
    doubts: list[str],
    task: CutOutTask | MatteTask,
    say: "_Stages",
) -> CutOut:
    say(0.75, f"encoding {task.suffix}")
    made = preview([rgba]) if task.preview else None
    return CutOut(
        data=encoded_picture(rgba, task.suffix),
        width=rgba.shape[1],
        height=rgba.shape[0],
        alpha=facts,
        how=how,
        notes=tuple(notes),
        warnings=tuple(doubts),
        preview=Shown(made.data, made.mime_type) if made else None,
    )


def encoded_picture(rgba: Bytes, suffix: str) -> bytes:
    """A PNG or lossless WebP file of one picture."""
    return webp_bytes(rgba) if suffix == ".webp" else png_bytes(rgba)


class _Stages:
    """Says how far a task is."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def __call__(self, fraction: float, message: str) -> None:
        self._report(Progress(fraction=fraction, message=message))

    def part(self, start: float, end: float, message: str) -> Callable[[float], None]:
        """A report of a part of the work, from `start` to `end` of the whole."""
        self(start, message)
        return lambda done: self(start + (end - start) * done, message)
