"""Compositions on disk: the file, and beside a PSD what it was made from.

made, kept_in = save_composition(settings.output, composed, "poster", ".psd")
"""

from pathlib import Path

from layerdiffuse_mcp.api.outcome import EncodedFile, ImageResult
from layerdiffuse_mcp.images.tasks import BESIDE, Composed
from layerdiffuse_mcp.outputs.names import file_name
from layerdiffuse_mcp.outputs.writer import save


def save_composition(output: Path, composed: Composed, name: str, suffix: str) -> tuple[ImageResult, Path | None]:
    """Write a composition below the output folder: its file, and that which keeps its record where it cannot.

    Raises:
        OutputError: it cannot be written; nothing is there.
    """
    files = [EncodedFile(name=file_name(name, 0, "composed", suffix), data=composed.data)]
    if composed.record is not None and suffix == ".psd":
        files.append(EncodedFile(name=file_name(name, 0, "composed", BESIDE), data=composed.record.encode()))
    path, *beside = save(output, files)
    made = ImageResult(
        role="blended", path=path, width=composed.width, height=composed.height, seed=0, alpha=composed.alpha
    )
    return made, beside[0] if beside else None
