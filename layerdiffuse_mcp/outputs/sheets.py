"""The files of a sheet: the picture and its atlas in two forms, which name the picture's file.

files = sheet_files(made, "hero", "png", now)          # EncodedFiles, to be written with `now`
"""

import secrets
from datetime import datetime

from layerdiffuse_mcp.api.outcome import EncodedFile, PictureFacts
from layerdiffuse_mcp.images.atlas import atlas_array, atlas_hash
from layerdiffuse_mcp.images.tasks import MadeSheet
from layerdiffuse_mcp.outputs.names import dated, slug

SHEET = "sheet"


def own_stem(name: str) -> str:
    """The beginning of files' names that nobody else has: only such a name is known before it is on disk."""
    return f"{slug(name or SHEET)}-{secrets.token_hex(3)}"


def sheet_files(made: MadeSheet, stem: str, format: str, now: datetime) -> list[EncodedFile]:
    """The sheet, its atlas with frames by name, and that with frames in order. `stem` is `own_stem` of a name."""
    image, size = f"{stem}.{format}", (made.width, made.height)
    on_disk = f"{dated(now)[1]}-{image}"
    facts = PictureFacts(role=None, name=SHEET, width=made.width, height=made.height, seed=0, alpha=made.alpha)
    return [
        EncodedFile(name=image, data=made.data, picture=facts),
        EncodedFile(name=f"{stem}.json", data=atlas_hash(made.frames, on_disk, size)),
        EncodedFile(name=f"{stem}-array.json", data=atlas_array(made.frames, on_disk, size)),
    ]
