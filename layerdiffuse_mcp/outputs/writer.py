"""Putting a job's files on disk: all of them appear together, complete, or none does.

    paths = save(settings.output, [EncodedFile(name="a-red-apple-7-foreground.png", data=png)])
    outcome = saved(outcome, settings.output)        # what an engine made, now on disk
    sweep(settings.output)                           # at start: what killed writers left

The bytes go to a hidden folder beside the dated one, `.unfinished-<date>-<random>`, on the same disk. Once all have
reached the disk they are linked into place under free names; no file is ever replaced. The hidden folder is then
renamed to `.done-...`, the moment from which the files stay, and removed. Whoever fails or is cancelled before leaves
nothing; of one that was killed before, `sweep` removes the hidden folder and whatever it had linked already. A writer
holds a lock on its hidden folder, so that no other server takes it for stale; without locks an hour's age decides.
"""

import contextlib
import os
import re
import secrets
import time
from collections.abc import Callable, Generator, Sequence
from datetime import datetime
from itertools import count
from pathlib import Path

from layerdiffuse_mcp.api.outcome import EncodedFile, ImageResult, Outcome
from layerdiffuse_mcp.errors import Cancelled, OutputError
from layerdiffuse_mcp.outputs.folder import Folder
from layerdiffuse_mcp.outputs.names import dated

LATENT = ".safetensors"
YOUNG, STALE = 1, 3600
"""Ages in seconds: a younger hidden folder may not be locked yet; an older one is left over where none can be."""
_HIDDEN = re.compile(r"\.(unfinished|done)-(\d{4}-\d\d-\d\d)-[0-9a-f]{12}")


def save(
    output: Path,
    files: Sequence[EncodedFile],
    cancelled: Callable[[], bool] = lambda: False,
    now: datetime | None = None,
) -> list[Path]:
    """Write files below the output folder; returns their paths, in order.

    `cancelled` is asked between the files, and once more before any of them can be seen. `now` is the time that the
    files are dated with, for whoever has to know a name beforehand; one that is taken gets a number.

    Raises:
        Cancelled: it said so; no file is there.
        OutputError: a folder cannot be made or written, the disk is full; no file is there.
    """
    if not files:
        return []
    day, time_of_day = dated(now or datetime.now().astimezone())
    try:
        with _opened(output) as root, _hidden_folder(root, day) as (hidden, commit):
            for number, file in enumerate(files):
                _ask(cancelled)
                hidden.write(str(number), file.data)
            hidden.sync()
            _ask(cancelled)
            with root.below(day) as folder:
                names = _place(hidden, folder, [f"{time_of_day}-{file.name}" for file in files], commit)
                return [folder.path / name for name in names]
    except OSError as error:
        raise OutputError(
            f"{output} cannot be written ({error.strerror or error}). None of the job's files was kept. "
            "Free space there, mend its rights, or choose another output folder."
        ) from error


def saved(
    outcome: Outcome, output: Path, cancelled: Callable[[], bool] = lambda: False, job: str | None = None
) -> Outcome:
    """The outcome with its encoded files on disk, as `images` and `latents`; raises as `save` does.

    Pictures of a `job` say which they are (`images.png.read_id`): by its id and their number, from 1.
    """
    files = with_ids(outcome.encoded, job)
    paths = save(output, files, cancelled, outcome.dated)
    pairs = list(zip(outcome.encoded, paths, strict=True))
    images = [ImageResult(path=path, **dict(file.picture)) for file, path in pairs if file.picture]
    others = [path for file, path in pairs if not file.picture]
    latents = [path for path in others if path.suffix == LATENT]
    return outcome.model_copy(
        update={
            "images": (*outcome.images, *images),
            "latents": (*outcome.latents, *latents),
            "files": (*outcome.files, *(path for path in others if path.suffix != LATENT)),
            "encoded": (),
        }
    )


def with_ids(files: Sequence[EncodedFile], job: str | None) -> list[EncodedFile]:
    """The files of a job, whose pictures say which they are; once more, nothing changes."""
    from layerdiffuse_mcp.images.png import with_id

    numbers = count(1)
    return [
        file.model_copy(update={"data": with_id(file.data, f"{job}-{next(numbers)}")}) if job and file.picture else file
        for file in files
    ]


def sweep(output: Path) -> None:
    """Remove what killed writers left below the output folder; whatever cannot be removed stays."""
    if not os.path.isdir(output):
        return
    with contextlib.suppress(OSError), Folder.open(output) as root:
        for name in root.names():
            if match := _HIDDEN.fullmatch(name):
                with contextlib.suppress(OSError):
                    _sweep_one(root, name, unfinished=match[1] == "unfinished", day=match[2])


def _sweep_one(root: Folder, name: str, *, unfinished: bool, day: str) -> None:
    with root.existing(name) as hidden:
        locked, age = hidden.lock(), time.time() - root.stat(name).st_mtime
        if locked is False or 0 <= age < (YOUNG if locked else STALE):
            return  # its writer is at work
        if unfinished:
            with contextlib.suppress(FileNotFoundError):
                _unlink_twins(hidden, root, day)
        root.remove_folder(name)


def _unlink_twins(hidden: Folder, root: Folder, day: str) -> None:
    """Remove the names that a writer gave before it was killed: its set was never complete, or never announced."""
    stats = [hidden.stat(name) for name in hidden.names()]
    twins = {(found.st_dev, found.st_ino) for found in stats if found.st_nlink > 1}
    if not twins:
        return
    with root.existing(day) as folder:
        for name in folder.names():
            found = folder.stat(name)
            if (found.st_dev, found.st_ino) in twins:
                folder.remove(name)


def _opened(output: Path) -> Folder:
    """The output folder; one that is made now in a project tells git to leave it alone."""
    is_new = not os.path.lexists(output)
    root = Folder.open(output)
    with contextlib.suppress(OSError):  # which would not keep a picture from being written
        if is_new and _in_project(Path(os.path.realpath(output))):
            root.write(".gitignore", b"*\n")
    return root


def _in_project(output: Path) -> bool:
    """Whether a folder lies in the working directory or in a git work tree."""
    return Path.cwd() in output.parents or any(os.path.exists(parent / ".git") for parent in output.parents)


@contextlib.contextmanager
def _hidden_folder(root: Folder, day: str) -> Generator[tuple[Folder, Callable[[], None]]]:
    """A locked folder for files that are not in place yet, and what to call when all of them are; removed after."""
    part = f"{day}-{secrets.token_hex(6)}"
    unfinished, done = f".unfinished-{part}", f".done-{part}"
    with root.below(unfinished, 0o700, new=True) as hidden:
        hidden.lock()
        try:
            yield hidden, lambda: root.rename(unfinished, done)
        finally:
            for name in (unfinished, done):
                with contextlib.suppress(OSError):
                    root.remove_folder(name)


def _place(hidden: Folder, day: Folder, names: Sequence[str], commit: Callable[[], None]) -> list[str]:
    """Give every file its name, all of them the same number where a name is taken; or none of them any."""
    placed: list[str] = []
    first = next(number for number in count(1) if not any(_is_taken(day, _numbered(name, number)) for name in names))
    try:
        for index, name in enumerate(names):
            placed.append(_link(hidden, str(index), day, name, first))
        day.sync()
        commit()
    except BaseException:
        for name in placed:
            with contextlib.suppress(OSError):
                day.remove(name)
        raise
    return placed


def _link(hidden: Folder, name: str, day: Folder, wanted: str, first: int) -> str:
    """Give one file the first free name from a number on: another writer may have been quicker."""
    for number in count(first):
        candidate = _numbered(wanted, number)
        with contextlib.suppress(FileExistsError):
            hidden.link(name, day, candidate)
            return candidate
    raise AssertionError("count() has no end")


def _numbered(name: str, number: int) -> str:
    """The number stands before all suffixes, so that `a.psd` and `a.layers.json` stay a pair."""
    stem, dot, suffixes = name.partition(".")
    return name if number == 1 else f"{stem}-{number}{dot}{suffixes}"


def _is_taken(folder: Folder, name: str) -> bool:
    try:
        folder.stat(name)
    except FileNotFoundError:
        return False
    return True


def _ask(cancelled: Callable[[], bool]) -> None:
    if cancelled():
        raise Cancelled("The job was cancelled while its files were written; none was kept.")
