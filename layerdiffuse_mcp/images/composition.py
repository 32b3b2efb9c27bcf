"""What a composition was put together from, kept in its file so that one layer of it can be changed later.

    text = record(kept)                          # into a PNG's chunk, an ORA's entry, or the file beside a PSD
    wanted = Wanted.of([], kept=read_kept(file), replace={"lamp": {"tint": "#0050ff"}})
    task = wanted.task(picture, find, suffix=".png")

A record is a JSON object: the layers with their fields, the canvas and the background. Pictures are named by file name,
size and SHA-256, never by path, for a file is made to be passed on; where they are now is found out by who reads it.
"""

import json
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from dataclasses import replace as replace_fields
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from layerdiffuse_mcp import __version__
from layerdiffuse_mcp.api.fields import explain, near
from layerdiffuse_mcp.api.layers import (
    MAX_LAYERS,
    MAX_SIDE,
    Canvas,
    CanvasSize,
    Colour,
    LayerOptions,
    PlacedLayer,
    merged,
    pixels_of,
)
from layerdiffuse_mcp.api.plan import GivenPicture
from layerdiffuse_mcp.errors import ImageError, InvalidRequest
from layerdiffuse_mcp.images.colour import colour_or_picture, is_colour
from layerdiffuse_mcp.images.files import name_of, open_regular, sha256
from layerdiffuse_mcp.images.png import LAYERS_KEY, MAX_RECIPE, embedded_text
from layerdiffuse_mcp.images.read import MAX_PIXELS
from layerdiffuse_mcp.images.tasks import BACKGROUND, BESIDE, ComposeTask, PlacedFile
from layerdiffuse_mcp.wording import quoted, short, valid_text

FORMAT = 1
ENTRY = "layerdiffuse/layers.json"
"""Of an OpenRaster archive."""
KEEPERS = {b"\x89PNG": ".png", b"PK\x03\x04": ".ora", b"8BPS": ".psd"}
"""What files begin with that keep compositions, and what the names of such end with."""
Offset = Annotated[int, Field(ge=-2 * MAX_SIDE, le=2 * MAX_SIDE)]
NONE = (
    "holds no composition. Give a png, ora or psd that compose_layers made and no other program has rewritten since; "
    "webp and jpg keep none."
)


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
    """A composition without its pixels: layers as they lie on its canvas.

    `canvas` is what was asked for, `before` the size that came of it, `background_at` where a background picture lies.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    format: Literal[1] = FORMAT
    software: Annotated[str, Field(max_length=200)] = f"layerdiffuse-mcp {__version__}"
    layers: Annotated[tuple[KeptLayer, ...], Field(min_length=1, max_length=MAX_LAYERS)]
    canvas: Canvas = Canvas()
    before: CanvasSize | None = None
    background: Colour | GivenPicture | None = None
    background_at: tuple[Offset, Offset] = (0, 0)


def kept_picture(path: Path) -> GivenPicture:
    """What a record says of a picture file."""
    with open_regular(path) as file:
        return GivenPicture(name=name_of(path), sha256=sha256(file), bytes=file.seek(0, 2))


def record(kept: Kept) -> str:
    """A composition as text, in ASCII."""
    layers = [_kept_fields(layer) for layer in kept.layers]
    shown = kept.model_dump(mode="json", exclude_none=True) | {"layers": layers, "canvas": kept.canvas.said()}
    return json.dumps(shown, indent=1)


def _kept_fields(layer: KeptLayer) -> dict[str, Any]:
    """What is written of a layer: what was given, and shadows with their defaults, which may be others one day."""
    shadow = {"shadow": layer.shadow.model_dump(mode="json")} if layer.shadow else {}
    return layer.said() | shadow | {"image": layer.image.model_dump(mode="json")}


def read_kept(file: BinaryIO, max_pixels: int = MAX_PIXELS) -> Kept:
    """The composition that a PNG or ORA holds, or that a `.layers.json` is.

    Raises:
        ImageError: it holds none, or one that is damaged or of a later version.
    """
    name = name_of(file)
    text = _text(file, max_pixels)
    if text is None:
        raise ImageError(f"{short(name)} {NONE}")
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


def kept_by(
    file: BinaryIO, path: Path, open_other: Callable[[Path], AbstractContextManager[BinaryIO]], max_pixels: int
) -> tuple[Kept, str]:
    """The composition of an open document at `path`, inside a PNG or ORA, beside a PSD; and the suffix of its format.

    Which that is the content says, whatever the file's name. Errors as `read_kept`; the record of a PSD is none.
    """
    file.seek(0)
    suffix = KEEPERS.get(file.read(4))
    if suffix is None and path.name.endswith(BESIDE):
        psd = short(path.name.removesuffix(BESIDE) + ".psd")
        raise ImageError(f"{short(path.name)} is a record, no picture: leave it there, and give {psd} beside it.")
    if suffix is None:
        raise ImageError(f"{short(path.name)} {NONE}")
    if suffix != ".psd":
        return read_kept(file, max_pixels), suffix
    beside = path.with_name(path.stem + BESIDE)
    try:
        with open_other(beside) as record:
            return read_kept(record, max_pixels), suffix
    except ImageError as error:
        raise ImageError(
            f"{short(path.name)} is a psd, whose composition is kept beside it in {short(beside.name)}: {error}"
        ) from None


Source = str | GivenPicture
"""A picture: as an agent names it, or as a record does."""


@dataclass(frozen=True)
class Wanted:
    """What is to be put together: layers, the lowest first, a canvas, and a colour or picture below.

    `before` and `background_at` are those of the composition that goes on, as a `ComposeTask` has them.
    """

    layers: tuple[tuple[Source, LayerOptions], ...]
    canvas: Canvas
    background: Source | None
    before: tuple[int, int] | None = None
    background_at: tuple[int, int] = (0, 0)

    @classmethod
    def of(
        cls,
        layers: Sequence[PlacedLayer],
        canvas: Canvas | None = None,
        background: str | None = None,
        kept: Kept | None = None,
        replace: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> "Wanted":
        """New layers, above those of a composition if there is one, some of which are changed.

        Its canvas stays, unless another is given or its size came of its layers and a picture is laid below.

        Raises:
            InvalidRequest: there are none, or what is to be replaced is not there.
        """
        if kept is None and replace:
            raise InvalidRequest("replace changes layers of a composition: give its file as source too.")
        if kept is None and not layers:
            raise InvalidRequest(
                'There are no layers to put together: give at least one, as in layers=[{"image": "lamp.png"}], or the '
                "file of an earlier composition as source."
            )
        new = [(layer.image, layer) for layer in layers]
        before = changed(kept, replace or {}) if kept else []
        if len(before) + len(new) > MAX_LAYERS:
            raise InvalidRequest(f"{len(before) + len(new)} layers are more than the {MAX_LAYERS} that are allowed.")
        fields = merged(kept.canvas.said() if kept else {}, canvas.said() if canvas else {})
        below = background if background is not None or kept is None else kept.background
        if below is not None and any(layer.name == BACKGROUND for layer in layers):
            raise InvalidRequest(
                f"A layer is named {BACKGROUND}, and so is what background= puts below all. Give it another name."
            )
        whole = cls((*before, *new), Canvas.model_validate(fields), below)
        if kept is None or (background is not None and not is_colour(background)):
            return whole
        return replace_fields(whole, before=pixels_of(kept.before), background_at=kept.background_at)

    def task(self, picture: Callable[[str], Path], find: Callable[[GivenPicture], Path], **more: Any) -> ComposeTask:
        """The task, with all pictures found.

        Args:
            picture: the file that an agent means.
            find: the file that a record names; raises ImageError when it is nowhere.
            more: the task's other fields.
        """

        def file(source: Source, what: str, instead: str) -> Path:
            if isinstance(source, str):
                return picture(source)
            try:
                return find(source)
            except ImageError as error:
                raise ImageError(
                    f"{what} is {short(Path(source.name).name)}, and no file with its content (SHA-256 "
                    f"{source.sha256[:10]}...) is beside the composition or in the folders that may be read. Put it "
                    f"back, or give another: {instead}."
                ) from error

        paths = [
            file(source, f"Layer {layer.name}", f'replace={{"{layer.name}": {{"image": "..."}}}}')
            for source, layer in self.layers
        ]
        given = [(layer.name, path) for (_, layer), path in zip(self.layers, paths, strict=True)]
        names = distinct_names(given, [BACKGROUND] if self.background is not None else [])
        placed = tuple(
            PlacedFile(path, name, layer) for path, name, (_, layer) in zip(paths, names, self.layers, strict=True)
        )
        below = self.background
        if isinstance(below, str):
            below = colour_or_picture(below, "background", picture)
        elif below is not None:
            below = file(below, "The background", 'background="..."')
        more |= {"before": self.before, "background_at": self.background_at}
        return ComposeTask(placed, self.canvas, below, **more)


def changed(kept: Kept, replace: Mapping[str, Mapping[str, Any]]) -> list[tuple[Source, LayerOptions]]:
    """A composition's layers, the lowest first, some with other fields.

    Raises:
        InvalidRequest: no such layer, or fields that no layer can have.
    """
    names = [layer.label for layer in kept.layers]
    for name in replace:
        if name not in names:
            instead = 'To change what lies below all, give background="...". ' if name == BACKGROUND else ""
            raise InvalidRequest(f"There is no layer {quoted(name)} in this composition. {instead}{near(name, names)}")
    layers: list[tuple[Source, LayerOptions]] = []
    for layer in kept.layers:
        changes = {name: value for name, value in replace.get(layer.label, {}).items() if value is not None}
        fields = merged({**layer.said(), "image": layer.label}, changes)
        try:
            options = PlacedLayer.model_validate(fields)
        except ValidationError as error:
            raise InvalidRequest(f"replace {quoted(layer.label)}: {explain(error)}") from None
        layers.append((options.image if "image" in changes else layer.image, options))
    return layers


def distinct_names(given: Sequence[tuple[str | None, Path]], taken: Sequence[str] = ()) -> list[str]:
    """Each layer's name: its own, or its file's with a number where that is taken, by another or from the beginning.

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
        names.append(valid_text(name) if name else next(n for n in numbers if n not in {*names, *own, *taken}))
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
        text = embedded_text(file, LAYERS_KEY, max_pixels)
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
