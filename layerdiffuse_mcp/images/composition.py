"""What a composition was put together from, kept in its file so that one layer of it can be changed later.

    text = record(kept)                          # into a PNG's chunk, an ORA's entry, or the file beside a PSD
    layers = changed(read_kept(file), {"lamp": {"tint": "#0050ff"}})

A record is a JSON object: the layers with their fields, the canvas and the background. Pictures are named by file name,
size and SHA-256, never by path, for a file is made to be passed on; where they are now is found out by who reads it.
"""

import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from layerdiffuse_mcp import __version__
from layerdiffuse_mcp.api.fields import explain, near
from layerdiffuse_mcp.api.layers import MAX_LAYERS, Canvas, Colour, LayerOptions, merged
from layerdiffuse_mcp.api.plan import GivenPicture
from layerdiffuse_mcp.errors import ImageError, InvalidRequest
from layerdiffuse_mcp.images.files import name_of, open_regular, sha256, valid_text
from layerdiffuse_mcp.images.png import LAYERS_KEY, MAX_RECIPE, read_text
from layerdiffuse_mcp.images.read import MAX_PIXELS
from layerdiffuse_mcp.wording import quoted, short

FORMAT = 1
ENTRY = "layerdiffuse/layers.json"
"""Of an OpenRaster archive."""
BESIDE = ".layers.json"
"""What the record beside a PSD is named by, after the PSD's stem."""
KEEPERS = (".png", ".ora", ".psd")


class KeptLayer(LayerOptions):
    """A layer and what is known of its picture."""

    image: GivenPicture

    @model_validator(mode="after")
    def _is_named(self) -> "KeptLayer":
        if not self.name:
            raise ValueError("a layer without a name")
        return self

    @property
    def label(self) -> str:
        """Its name, which a kept layer always has."""
        return self.name or ""


class Kept(BaseModel):
    """A composition without its pixels."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    format: Literal[1] = FORMAT
    software: Annotated[str, Field(max_length=200)] = f"layerdiffuse-mcp {__version__}"
    layers: Annotated[tuple[KeptLayer, ...], Field(min_length=1, max_length=MAX_LAYERS)]
    canvas: Canvas = Canvas()
    background: Colour | GivenPicture | None = None


def kept_picture(path: Path) -> GivenPicture:
    """What a record says of a picture file."""
    with open_regular(path) as file:
        return GivenPicture(name=name_of(path), sha256=sha256(file), bytes=file.seek(0, 2))


def record(kept: Kept) -> str:
    """A composition as text, in ASCII."""
    layers = [layer.said() | {"image": layer.image.model_dump(mode="json")} for layer in kept.layers]
    shown = kept.model_dump(mode="json", exclude_none=True) | {"layers": layers, "canvas": kept.canvas.said()}
    return json.dumps(shown, indent=1)


def read_kept(file: BinaryIO, max_pixels: int = MAX_PIXELS) -> Kept:
    """The composition that a PNG or ORA holds, or that a `.layers.json` is.

    Raises:
        ImageError: it holds none, or one that is damaged or of a later version.
    """
    name = name_of(file)
    text = _text(file, max_pixels)
    if text is None:
        raise ImageError(
            f"{short(name)} holds no composition. Give a png, ora or psd that compose_layers made and no other program "
            "has rewritten since; webp and jpg keep none."
        )
    try:
        given = json.loads(text)
        if isinstance(given, dict) and given.get("format") != FORMAT:
            raise ValueError(f"format {short(given.get('format'))}, and this version reads format {FORMAT}")
        return Kept.model_validate(given)
    except ValidationError as error:
        raise ImageError(f"{short(name)}: the composition inside is damaged ({explain(error)})") from None
    except (ValueError, RecursionError) as error:
        why = "too deep" if isinstance(error, RecursionError) else short(str(error))
        raise ImageError(f"{short(name)}: the composition inside cannot be read ({why}).") from None


def is_psd(file: BinaryIO) -> bool:
    """Whether a file is a Photoshop document, whose composition lies beside it."""
    file.seek(0)
    return file.read(4) == b"8BPS"


def beside(document: Path) -> Path:
    """The file with a PSD's composition."""
    return document.with_name(document.stem + BESIDE)


Source = str | GivenPicture
"""A layer's picture: as an agent names it, or as a record does."""


def changed(kept: Kept, replace: Mapping[str, Mapping[str, Any]]) -> list[tuple[Source, LayerOptions]]:
    """A composition's layers, the lowest first, some with other fields; null in place of a field takes it away.

    Raises:
        InvalidRequest: no such layer, or fields that no layer can have.
    """
    names = [layer.label for layer in kept.layers]
    for name in replace:
        if name not in names:
            raise InvalidRequest(f"There is no layer {quoted(name)} in this composition. {near(name, names)}")
    layers: list[tuple[Source, LayerOptions]] = []
    for layer in kept.layers:
        changes = {name: value for name, value in replace.get(layer.label, {}).items() if name != "image"}
        image = replace.get(layer.label, {}).get("image")
        if image is not None and not (isinstance(image, str) and image):
            raise InvalidRequest(f"replace {quoted(layer.label)}: image is a path or an image id, not {quoted(image)}.")
        fields = {name: value for name, value in layer.said().items() if name != "image"}
        try:
            options = LayerOptions.model_validate({"name": layer.label, **merged(fields, changes)})
        except ValidationError as error:
            raise InvalidRequest(f"replace {quoted(layer.label)}: {explain(error)}") from None
        layers.append((layer.image if image is None else image, options))
    return layers


def distinct_names(given: Sequence[tuple[str | None, Path]]) -> list[str]:
    """Each layer's name: its own, or its file's with a number where that is taken.

    Raises:
        InvalidRequest: two have the same name of their own.
    """
    own = [valid_text(name) for name, _ in given if name]
    for name in own:
        if own.count(name) > 1:
            raise InvalidRequest(f"Two layers are named {quoted(name)}. Give each a name of its own.")
    names: list[str] = []
    for name, path in given:
        stem = valid_text(name or path.stem)[:90]
        numbers = (stem if number == 1 else f"{stem} {number}" for number in range(1, MAX_LAYERS + 2))
        names.append(valid_text(name) if name else next(n for n in numbers if n not in names and n not in own))
    return names


def _text(file: BinaryIO, max_pixels: int) -> str | None:
    """The record's text, at most `MAX_RECIPE` long."""
    file.seek(0)
    head = file.read(4)
    file.seek(0)
    if head[:1] == b"{":
        text = file.read(MAX_RECIPE + 1).decode("utf-8", "replace")
    elif head == b"PK\x03\x04":
        text = _entry(file)
    else:
        text = read_text(file, LAYERS_KEY, max_pixels)
    if text is not None and len(text) > MAX_RECIPE:
        raise ImageError(f"{short(name_of(file))}: the composition inside is longer than {MAX_RECIPE} characters.")
    return text


def _entry(file: BinaryIO) -> str | None:
    try:
        with zipfile.ZipFile(file) as archive, archive.open(ENTRY) as entry:
            return entry.read(MAX_RECIPE + 1).decode("utf-8", "replace")
    except KeyError:
        return None
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError, EOFError, NotImplementedError, RuntimeError) as error:
        raise ImageError(f"{short(name_of(file))} is damaged ({short(str(error))}). Give a complete file.") from error
