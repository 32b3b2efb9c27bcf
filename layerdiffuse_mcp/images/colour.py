"""What lies behind a picture: a colour by its name or digits, or a checkerboard."""

import re

from PIL import ImageColor

from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.images.tasks import CHECKERBOARD, Colour


class BareDigits(InvalidRequest):
    """A colour's hex digits without the mark before them."""


def background_colour(background: str) -> Colour | None:
    """A colour of its name or hex digits; None for a checkerboard.

    Raises:
        InvalidRequest: it is neither.
    """
    if background.strip().lower() == CHECKERBOARD:
        return None
    if re.fullmatch(r"[0-9a-fA-F]{3,4}|[0-9a-fA-F]{6}|[0-9a-fA-F]{8}", background.strip()):
        raise BareDigits(f'background "{background.strip()}" is a colour without its mark: "#{background.strip()}".')
    try:
        red, green, blue = ImageColor.getrgb(background.strip())[:3]
    except ValueError as error:
        raise InvalidRequest(
            f'background "{background[:40]}" is not known. Give "checkerboard", a colour\'s name such as "white", '
            'or "#rrggbb".'
        ) from error
    return (red / 255, green / 255, blue / 255)
