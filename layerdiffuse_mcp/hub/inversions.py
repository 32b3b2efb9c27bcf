"""Textual inversions: words that a prompt may use, each a file of the folder `embeddings/` in the models folder.

    known = read_inversions(settings.models_dir)        # by name: the file's, as A1111 and Forge call them
    known["easynegative"].vectors                       # how many tokens of a prompt it takes the place of
    check_fits(known["easynegative"], base, family)     # refused where its vectors are of another width

Told by headers alone: `emb_params` (A1111), one tensor by its word (diffusers), or `clip_l` and `clip_g` (SDXL). Files
that cannot be used have a `problem`, which whoever names them is told.
"""

import functools
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from layerdiffuse_mcp.errors import InvalidRequest, ModelError, ModelNotFound
from layerdiffuse_mcp.families.entries import ModelEntry
from layerdiffuse_mcp.families.spec import FamilySpec
from layerdiffuse_mcp.hub.headers import PICKLE_SUFFIXES, read_header
from layerdiffuse_mcp.hub.identify import text_widths
from layerdiffuse_mcp.text.chunks import CHUNK_SIZE
from layerdiffuse_mcp.wording import printable, quoted, valid_text

FOLDER, SUFFIX = "embeddings", ".safetensors"
ENCODERS: Sequence[tuple[str, ...]] = (("clip_l", "clip_g"), ("emb_params",))
"""Tensors that a file may have, one a text encoder in the order of the families' cards; else it has one of any name."""
MOST_FILES = 10_000
"""Files that are looked at."""


@dataclass(frozen=True)
class Inversion:
    """A word and its file. `widths` of its vectors, one a text encoder; `problem`: why it cannot be used."""

    name: str
    path: Path
    vectors: int = 1
    widths: tuple[int, ...] = ()
    tensors: tuple[str, ...] = ()
    problem: str = ""


def read_inversions(models_dir: Path) -> dict[str, Inversion]:
    """The textual inversions of a models folder by name, the nearest to the top first; later ones of a name are not
    used."""
    found: dict[str, Inversion] = {}
    folder = models_dir / FOLDER
    inside = sorted(folder.rglob("*"))[:MOST_FILES] if os.path.isdir(folder) else []
    paths = [path for path in inside if os.path.isfile(path)]
    for path in sorted(paths, key=lambda path: (path.suffix.lower() != SUFFIX, len(path.parts))):
        if path.suffix.lower() in (SUFFIX, *PICKLE_SUFFIXES) and path.stem.lower() not in map(str.lower, found):
            with suppress(OSError):  # it went meanwhile
                facts = path.stat()
                found[path.stem] = _inversion(path, facts.st_mtime_ns, facts.st_size)
    return found


@functools.lru_cache(maxsize=4096)
def _inversion(path: Path, changed: int, size: int) -> Inversion:
    """What a file holds; `changed` and `size` make a changed file a new question."""
    name = path.name
    if name != valid_text(name):
        return Inversion(path.stem, path, problem=f"{printable(name)} has a name that UTF-8 cannot say: rename it.")
    if path.suffix.lower() != SUFFIX:
        problem = (
            f"{printable(name)} is a pickle, which can run code when it is opened: get the {SUFFIX} file of this "
            f"textual inversion, and put it into {FOLDER}/ in its place."
        )
        return Inversion(path.stem, path, problem=problem)
    try:
        shapes = {key: shape[-2:] if len(shape) > 1 else (1, *shape) for key, shape in read_header(path).shapes.items()}
        tensors = next((keys for keys in ENCODERS if set(keys) <= shapes.keys()), tuple(shapes))
        if len(tensors) != 1 and tensors not in ENCODERS:
            raise ModelError(f"{printable(name)} holds {len(shapes)} tensors, and a textual inversion has one word.")
        counts, widths = zip(*(shapes[key] for key in tensors), strict=True)
        if len({*counts}) != 1 or not 1 <= counts[0] <= CHUNK_SIZE:
            raise ModelError(f"{printable(name)} is no textual inversion of 1 to {CHUNK_SIZE} vectors.")
    except (ModelError, OSError, ValueError) as error:
        return Inversion(path.stem, path, problem=f"{error} Take it out of {FOLDER}/, or put the right file there.")
    return Inversion(path.stem, path, counts[0], widths, tensors)


def inversion_file(name: str, models_dir: Path) -> Path:
    """Where the textual inversion of that name lies; raises ModelNotFound when it is gone."""
    found = read_inversions(models_dir).get(name)
    if found is None:
        raise ModelNotFound(f"The textual inversion {quoted(name)} is gone. Put its file back, or leave it out.")
    return found.path


def vectors_of(known: Mapping[str, Inversion]) -> dict[str, int]:
    """How many tokens each takes, as `text.chunks` wants it."""
    return {name: one.vectors for name, one in known.items()}


def check_fits(inversion: Inversion, entry: ModelEntry, family: FamilySpec) -> None:
    """Refuse one that cannot be used with a base; where that is not here yet, its widths are not known.

    Raises:
        InvalidRequest: it has a problem, or its vectors are of another width than the base's text encoders.
    """
    what = f"The prompt names the textual inversion {quoted(inversion.name)}"
    if inversion.problem:
        raise InvalidRequest(f"{what}, which cannot be used: {inversion.problem}")
    widths = text_widths(entry.path, family) if entry.path else None
    if widths is not None and inversion.widths != widths:
        own, wanted = (" and ".join(map(str, one)) for one in (inversion.widths, widths))
        raise InvalidRequest(
            f"{what}, whose vectors have {own} numbers, and those of {entry.name} have {wanted}: it was made for "
            f"another family of models. Leave the word out, or name a model that it was made for."
        )
