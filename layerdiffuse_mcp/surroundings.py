"""What every process is thought to have, and some clients leave out: a home folder and a working directory.

    complete()     # before anything asks for either

Without a home `~` would become a folder of that name wherever the program happens to stand.
"""

import os
import stat
import tempfile
from pathlib import Path

HOME = "USERPROFILE" if os.name == "nt" else "HOME"


def complete() -> None:
    """Give this process, and those that it starts, a home and a working directory if it has none."""
    if not os.environ.get(HOME):
        os.environ.pop(HOME, None)  # an empty one would be the root
    try:
        Path.home()
    except RuntimeError:  # a user without an account, as in a container
        os.environ[HOME] = _own_folder()
    working_directory()


def working_directory() -> Path:
    """Where this process stands; where that folder was deleted it stands at the root from now on."""
    try:
        return Path.cwd()
    except OSError:
        os.chdir(os.path.abspath(os.sep))
        return Path.cwd()


def _own_folder() -> str:
    """A folder that is this user's alone, the same one the next time if nobody else has taken its name."""
    user = os.getuid() if hasattr(os, "getuid") else None
    folder = Path(tempfile.gettempdir()) / f"layerdiffuse-home-{user}"
    try:
        folder.mkdir(0o700, exist_ok=True)
        found = folder.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == user and not found.st_mode & 0o077:
            return str(folder)
    except OSError:
        pass
    return tempfile.mkdtemp(prefix="layerdiffuse-home-")
