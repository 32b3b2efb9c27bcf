"""Layer files that are published as a pickle are made in a process of its own, bounded in memory and time.

    made = convert(Path("TransparentVAE.pth"))               # beside it, or in another folder

What the pickle is like, that process alone gets to see (`engine/transparency/conversion.py`): it writes into a folder
of its own, from which the files come to their place when all of them are whole.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from layerdiffuse_mcp.backends.pictures_worker import OVER_LIMIT, bound_memory
from layerdiffuse_mcp.errors import LayerDiffuseError, LayerFileError, ModelNotFound, OutOfMemory, WorkerDied
from layerdiffuse_mcp.families.registry import LAYER_FILES
from layerdiffuse_mcp.hub.headers import PICKLE_SUFFIXES
from layerdiffuse_mcp.wording import in_words, printable

SECONDS = 600.0
"""That the process may take."""
MEMORY, TIMES = 3_000_000_000, 4
"""Bytes that it may take, and beside these how many times as many as the pickle has."""


def convert(path: Path, folder: Path | None = None) -> list[Path]:
    """Make the files; where they are now.

    Raises:
        ModelNotFound: there is no such file.
        LayerFileError: it is none that is converted, would run code when it is opened, or its files are there already.
        OutOfMemory, WorkerDied: the process took too much.
        LayerDiffuseError: the folder cannot be written.
    """
    if not os.path.isfile(path):
        raise ModelNotFound(f"There is no file {printable(path)}. Give the path of the pickle that was fetched.")
    if path.suffix.lower() not in PICKLE_SUFFIXES:
        known = ", ".join(sorted(PICKLE_SUFFIXES))
        raise LayerFileError(f"{printable(path.name, 80)} is no pickle by its name: those end in {known}.")
    folder = folder or path.parent
    for name, file in LAYER_FILES.items():
        if file.converted_from and os.path.exists(folder / name):
            raise LayerFileError(
                f"{name} is in {printable(folder)} already, and was left as it is. Remove it, or name another folder "
                "with --output."
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".converting-", dir=folder) as beside:
            names = _converted(path.absolute(), Path(beside))
            made = [Path(beside, name) for name in names]
            for one in made:
                shutil.copymode(path, one)  # who may read the pickle may read what is made of it
            return _in_place(made, folder)
    except OSError as error:
        raise LayerDiffuseError(
            f"{printable(folder)} cannot be written ({error.strerror or error}). Name another folder with --output."
        ) from error


def _converted(path: Path, folder: Path) -> Sequence[str]:
    """The names of the files that the process wrote into `folder`."""
    memory = MEMORY + TIMES * path.stat().st_size
    command = [sys.executable, "-P", "-W", "ignore", "-m", __name__, str(path), str(folder), str(memory)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, env=environment, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise WorkerDied(f"{printable(path.name, 80)} was not converted in {SECONDS:.0f} s: it was stopped.") from None
    answer: dict[str, list[str] | str] = {}
    with suppress(ValueError):
        answer = json.loads(done.stdout)
    if isinstance(made := answer.get("made"), list) and done.returncode == 0:
        return made
    if "error" in answer:
        raise LayerFileError(str(answer["error"]))
    if done.returncode == OVER_LIMIT or "memory" in answer:
        raise OutOfMemory(f"{printable(path.name, 80)} takes more than {in_words(memory)} of memory to convert.")
    raise WorkerDied(
        f"The process that converted {printable(path.name, 80)} ended with exit code {done.returncode}. The file may "
        "be damaged, or made to do harm: fetch the published one."
    )


def _in_place(made: Sequence[Path], folder: Path) -> list[Path]:
    """Move files into a folder, all of them or none."""
    moved: list[Path] = []
    try:
        for path in made:
            os.replace(path, folder / path.name)
            moved.append(folder / path.name)
    except OSError:
        for path in moved:
            path.unlink(missing_ok=True)
        raise
    return moved


def main(path: str, folder: str, memory: str) -> None:
    """The process: its answer goes to standard output as JSON."""
    answer, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints is no answer
    try:
        from layerdiffuse_mcp.engine.startup import lean_imports

        with lean_imports():
            from layerdiffuse_mcp.engine.transparency import conversion
        bound_memory(int(memory))
        said = {"made": [*conversion.convert(Path(path), Path(folder))]}
    except LayerDiffuseError as error:
        said = {"error": str(error)}
    except MemoryError as error:
        said = {"memory": str(error)}
    answer.write(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])
