"""Compositions on disk: the file, and beside a PSD what it was made from.

files = composition_files(composed, "poster", ".psd")
made, kept_in = save_composition(settings.output, composed, "poster", ".psd")
"""

from pathlib import Path

from layerdiffuse_mcp.api.outcome import EncodedFile, ImageResult, PictureFacts
from layerdiffuse_mcp.images.tasks import BESIDE, COMPOSED, Composed
from layerdiffuse_mcp.outputs.names import file_name, words_in
from layerdiffuse_mcp.outputs.writer import save

NAME = "composition"


def name_for(wished: str | None, source: Path | None) -> str:
    """What a composition is named by: what was wished, or the name of the one that it was before."""
    return wished or (words_in(source) if source else NAME)


def composition_files(composed: Composed, name: str, suffix: str) -> list[EncodedFile]:
    """The file of a composition, and that which keeps its record where it cannot."""
    facts = PictureFacts(role=None, name=COMPOSED, width=composed.width, height=composed.height, alpha=composed.alpha)
    files = [EncodedFile(name=file_name(name, None, COMPOSED, suffix), data=composed.data, picture=facts)]
    if composed.record is not None and suffix == ".psd":
        files.append(EncodedFile(name=file_name(name, None, COMPOSED, BESIDE), data=composed.record.encode()))
    return files


def save_composition(output: Path, composed: Composed, name: str, suffix: str) -> tuple[ImageResult, Path | None]:
    """Write a composition below the output folder.

    Raises:
        OutputError: it cannot be written; nothing is there.
    """
    files = composition_files(composed, name, suffix)
    path, *beside = save(output, files)
    made = ImageResult(path=path, **dict(files[0].picture or ()))
    return made, beside[0] if beside else None
