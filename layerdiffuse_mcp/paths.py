"""Who may read and write where: every path an agent names passes through here."""

from pathlib import Path

from layerdiffuse_mcp.errors import AccessDenied, ImageError
from layerdiffuse_mcp.settings import Settings


def readable_file(path: str | Path, settings: Settings) -> Path:
    """The real, absolute path of an existing file below an allowed folder.

    Relative paths are taken from the output folder first, then from the working directory.
    Symlinks are followed before the check, so a link out of the folder is refused.

    Raises:
        AccessDenied: the file lies outside the allowed folders.
        ImageError: there is no such file.
    """
    allowed = [folder.resolve() for folder in settings.readable]
    given = Path(path).expanduser()
    candidates = [given] if given.is_absolute() else [settings.output / given, Path.cwd() / given]
    inside = [real for real in (c.resolve() for c in candidates) if any(real.is_relative_to(a) for a in allowed)]
    if not inside:
        folders = ", ".join(str(folder) for folder in allowed)
        raise AccessDenied(
            f"{given} lies outside the folders that may be read. Allowed: {folders}. "
            "Copy the file there, or add its folder to LAYERDIFFUSE_READ_DIRS."
        )
    for real in inside:
        if real.is_file():
            return real
    raise ImageError(f"There is no file {given}. Give the absolute path of an existing file.")
