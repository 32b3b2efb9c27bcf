"""The files of a sheet: the picture and its atlas in two forms, which name the picture's file.

files = sheet_files(made, "hero", "png", now)          # EncodedFiles, to be written with `now`
frame_name(Path("101500-set-1a2b3c-red-apple-7.png"))  # "red apple", as its recipe says
"""

import re
import secrets
from datetime import datetime
from pathlib import Path

from layerdiffuse_mcp.api.outcome import EncodedFile, PictureFacts
from layerdiffuse_mcp.errors import ImageError
from layerdiffuse_mcp.images.atlas import atlas_array, atlas_hash
from layerdiffuse_mcp.images.png import read_recipe
from layerdiffuse_mcp.images.tasks import MadeSheet
from layerdiffuse_mcp.outputs.names import SLUG_LENGTH, dated, slug
from layerdiffuse_mcp.text.emphasis import extract_loras
from layerdiffuse_mcp.wording import printable

SHEET = "sheet"
_NAMED_BY_US = re.compile(r"[0-9]{6}-.+-.+")


def own_stem(name: str) -> str:
    """The beginning of files' names that nobody else has: only such a name is known before it is on disk."""
    return f"{slug(name or SHEET)}-{secrets.token_hex(3)}"


def sheet_files(made: MadeSheet, stem: str, format: str, now: datetime) -> list[EncodedFile]:
    """The sheet, its atlas with frames by name, and that with frames in order. `stem` is `own_stem` of a name."""
    image, size = f"{stem}.{format}", (made.width, made.height)
    on_disk = f"{dated(now)[1]}-{image}"
    facts = PictureFacts(role=None, name=SHEET, width=made.width, height=made.height, alpha=made.alpha)
    return [
        EncodedFile(name=image, data=made.data, picture=facts),
        EncodedFile(name=f"{stem}.json", data=atlas_hash(made.frames, on_disk, size)),
        EncodedFile(name=f"{stem}-array.json", data=atlas_array(made.frames, on_disk, size)),
    ]


def frame_name(path: Path) -> str:
    """What a picture is called in an atlas: its subject or the beginning of its prompt while its file has the name that
    we gave it and holds its recipe; otherwise, and wherever a person renamed it, the file's name."""
    try:
        recipe = (read_recipe(path) if _NAMED_BY_US.fullmatch(path.stem) else None) or {}
    except ImageError:
        recipe = {}
    request = recipe.get("request")
    prompt = request.get("prompt") if isinstance(request, dict) else None
    shown = recipe.get("subject") or (extract_loras(str(prompt))[0].split(",")[0] if prompt else "")
    return printable(str(shown).strip(), SLUG_LENGTH) or path.stem
