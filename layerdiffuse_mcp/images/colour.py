"""What lies behind a picture, or colours it: a colour by its name or digits, or a checkerboard."""

import difflib
import re
from collections.abc import Callable
from pathlib import Path

from PIL import ImageColor

from layerdiffuse_mcp.errors import ImageError, InvalidRequest
from layerdiffuse_mcp.images.tasks import CHECKERBOARD, Colour
from layerdiffuse_mcp.wording import QUOTED, quoted

WRITTEN = re.compile(r"#|(rgb|hsl)a?\(|([0-9a-f]{3}|[0-9a-f]{6})$")
DIGITS = re.compile("[0-9a-fA-F]{3}|[0-9a-fA-F]{6}")


def background_colour(background: str) -> Colour | None:
    """A colour of its name or hex digits; None for a checkerboard.

    Raises:
        InvalidRequest: it is neither.
    """
    if background.strip().lower() == CHECKERBOARD:
        return None
    return colour_of(background, "background", '"checkerboard", ')


def colour_of(given: str, what: str, others: str = "") -> Colour:
    """A colour of its name or hex digits.

    Args:
        what: what messages call it.
        others: what else may be given there, as messages list it.

    Raises:
        InvalidRequest: it is none.
    """
    text = given.strip()
    if DIGITS.fullmatch(text):
        raise InvalidRequest(f'{what} {quoted(text)} lacks its #: give "#{text}".')
    try:
        red, green, blue, *alpha = ImageColor.getrgb(text)
    except ValueError as error:
        raise InvalidRequest(
            f'{what} {quoted(given)} is not known. Give {others}a colour\'s name such as "white", or "#rrggbb".'
        ) from error
    colour = (red / 255, green / 255, blue / 255)
    if alpha and alpha != [255]:
        raise InvalidRequest(f'{what} {quoted(given)} is transparent, and colours here are opaque: "{hex_of(colour)}".')
    return colour


def colour_or_picture(given: str, what: str, picture: Callable[[str], Path]) -> Colour | Path:
    """A colour, else the path of a picture.

    Args:
        what: what messages call it.
        picture: the file that is meant by a text; raises ImageError.

    Raises:
        InvalidRequest: it is meant as a colour, and is none.
        ImageError: there is no such picture; it says how colours are given, if one may have been meant.
    """
    if given.strip().lower() == CHECKERBOARD:
        raise InvalidRequest(f"{what}: give a colour such as white or #00b140, or a picture.")
    if is_colour(given):
        return colour_of(given, what)
    try:
        return picture(given)
    except ImageError as error:
        raise ImageError(f"{error}{if_meant(given)}") from None


def is_colour(text: str) -> bool:
    """Whether a text is meant as a colour, rather than as a file's name."""
    text = text.strip().lower()
    return bool(WRITTEN.match(text)) or text in ImageColor.colormap


def if_meant(text: str) -> str:
    """What to say, behind a blank, of a text that is no file's name and may have been meant as a colour, or nothing."""
    if close := difflib.get_close_matches(text.strip().lower()[:QUOTED], ImageColor.colormap, n=1):
        return f" If a colour is meant: {close[0]}."
    if re.search(r"[./\\\d]", text):
        return ""
    return ' If a colour is meant, give its English name such as "white", or "#rrggbb".'


def hex_of(colour: Colour) -> str:
    """A colour as #rrggbb."""
    return "#" + "".join(f"{round(part * 255):02x}" for part in colour)
