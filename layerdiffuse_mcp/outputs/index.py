"""The index of pictures that were made here: what each holds, and which job it came of, also after a restart.

    index = Index(settings)
    index.add(outcome.images, outcome.model, job.id)    # once they are on disk
    index.find("job-863032aa", 1)                       # the picture of that id, as an Entry
    index.search(Query(words="red apple"), 20)          # the newest of them; their recipes: read_recipe(entry.path)

One SQLite file in the user's state folder (`database.py`), for all of the user's servers. Each server sees what lies
below its own output folder. The pictures are the truth: where the file is lost, damaged or of another `VERSION`,
those below the output folder that hold a recipe are read in again, in the background, and are found by the ids that
they hold; the folder and name that the writer gave each say when it was made, else its file does. An index that cannot
be used is warned of once, and nothing else fails: what could not be written is with the next that can. Each file is
kept with its SHA-256: what has another one by now is no longer ours (`removal.py`). Every method may be called in any
thread, and reads and writes files: not in an event loop.
"""

import contextlib
import logging
import os
import re
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import platformdirs

from layerdiffuse_mcp.api.fields import near
from layerdiffuse_mcp.api.outcome import ImageResult
from layerdiffuse_mcp.errors import ImageError, InvalidRequest, OutputError
from layerdiffuse_mcp.families.registry import FAMILIES
from layerdiffuse_mcp.families.spec import ROLES
from layerdiffuse_mcp.images.tasks import COMPOSED
from layerdiffuse_mcp.outputs.database import Database
from layerdiffuse_mcp.outputs.folder import Folder, picture_files
from layerdiffuse_mcp.outputs.names import dated_by
from layerdiffuse_mcp.outputs.query import BELOW, NAMES, WANTED, Query, holds
from layerdiffuse_mcp.settings import Settings
from layerdiffuse_mcp.wording import printable, quoted, valid_text

VERSION = 2
"""Of the tables; it stands in the file's name, so that servers of two versions do not take each other's for damaged."""
REBUILT_WITHIN = 2.0
"""Seconds for which a search waits for pictures that are being read in."""
SEARCHED, READ, BATCH = 50_000, 2_000, 50
"""Files that a rebuilding looks at, the newest of them that it reads, and how many it writes at once."""
PAUSE = 0.005
"""Seconds between two pictures that are read in: whatever else is done is not to feel it."""
LONGEST_TEXT = 20_000
WAITING = 1_000
"""Changes that are kept for an index that cannot be written now."""
OUR_ROLES = (*ROLES, COMPOSED)
PICTURE_ID = re.compile(r"(job-[0-9a-z]{1,40})-([0-9]{1,6})")
_BROKEN = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}
"""What SQLite says of a damaged file; the last, of one whose tables are not ours."""

logger = logging.getLogger(__name__)
T = TypeVar("T")


class Entry(NamedTuple):
    """A picture. `job` and `number` are None where they are not known, as is whatever its file does not say."""

    path: Path
    job: str | None
    number: int | None
    role: str | None
    width: int | None
    height: int | None
    seed: int | None
    prompt: str | None
    model: str | None
    family: str | None
    verdict: str | None
    time: float
    sha256: str | None

    @property
    def id(self) -> str | None:
        """The picture's id, if it is known."""
        return f"{self.job}-{self.number}" if self.job and self.number else None


class Found(NamedTuple):
    """What a search found: a page of it, and how many there are in all.

    `complete` is False while pictures are still being read in.
    """

    entries: list[Entry]
    total: int
    complete: bool


_COLUMNS = ", ".join(Entry._fields)
_TABLES = (
    f"CREATE TABLE IF NOT EXISTS pictures ({_COLUMNS}, PRIMARY KEY (path))",
    "CREATE INDEX IF NOT EXISTS by_job ON pictures (job, number)",
    "CREATE INDEX IF NOT EXISTS by_time ON pictures (time)",
    "CREATE TABLE IF NOT EXISTS folders (path PRIMARY KEY)",
    "CREATE TABLE IF NOT EXISTS companions (path PRIMARY KEY, picture, sha256)",
    "CREATE INDEX IF NOT EXISTS by_picture ON companions (picture)",
)
"""`folders` are the output folders whose pictures have been read in; `companions`, files made beside a picture."""
_INSERT = f"INTO pictures ({_COLUMNS}) VALUES ({', '.join('?' * len(Entry._fields))})"
_SELECT = f"SELECT {_COLUMNS} {BELOW}"


def index_file() -> Path:
    """Where the index is kept."""
    return platformdirs.user_state_path("layerdiffuse") / f"pictures-{VERSION}.sqlite"


class Index:
    """What is known of the pictures below the output folder; with `history` off nothing is kept or found."""

    def __init__(self, settings: Settings) -> None:
        self.output = Path(os.path.realpath(settings.output))
        self._below = {"below": os.path.join(os.fsencode(self.output), b"")}
        self.kept = settings.history
        """Whether anything is."""
        self._file = index_file()
        self._database = Database(self._file, _TABLES)
        self._waiting: deque[Callable[[sqlite3.Connection], object]] = deque(maxlen=WAITING)
        self._warned = threading.Lock()  # held for good once somebody has warned: calls come from many threads
        self.rebuilding: threading.Thread | None = None

    def held(self) -> AbstractContextManager[None]:
        """For as long as the block lasts each operation costs less; see `Database.held`."""
        return self._database.held()

    def add(
        self, images: Sequence[ImageResult], model: str = "", job: str | None = None, beside: Sequence[Path] = ()
    ) -> None:
        """Take in pictures that are on disk, in the order in which the job numbers them.

        `beside` are other files of theirs, each of the picture whose name its own begins with.
        """
        if not images or not self.kept:
            return
        rows: list[Any] = []
        companions: list[Any] = []
        for number, image in enumerate(images, 1):
            with contextlib.suppress(OSError):
                entry = _entry_of(Path(os.path.realpath(image.path)))
                entry = entry._replace(role=image.label, width=image.width, height=image.height, seed=image.seed)
                entry = entry._replace(job=job, number=number if job else None, model=_text(model) or entry.model)
                entry = entry._replace(verdict=image.verdict)
                rows.append(_row(entry))
        for path in beside:
            owners = [image.path for image in images if path.name.startswith(image.path.stem)]
            with contextlib.suppress(OSError, ValueError):
                owner = os.path.realpath(max(owners, key=lambda owner: len(owner.stem)))
                real = Path(os.path.realpath(path))
                companions.append((os.fsencode(real), os.fsencode(owner), _sha256(real)))

        def added(connection: sqlite3.Connection) -> None:
            connection.executemany(f"INSERT OR REPLACE {_INSERT}", rows)
            connection.executemany("INSERT OR REPLACE INTO companions VALUES (?, ?, ?)", companions)

        self.write(added)

    def find(self, job: str, number: int) -> Entry | None:
        """The picture of a job, if it was made below the output folder; one whose file is gone is found once more."""
        query = f"{_SELECT} AND job = :job AND number = :number"
        found = self.attempt(lambda connection: self._entries(connection, query, {"job": job, "number": number}), [])
        return found[0] if found else None

    def at(self, path: Path) -> Entry | None:
        """The picture at a real path, its last part not followed; one whose file is gone is found once more."""
        query = f"{_SELECT} AND path = :path"
        found = self._sure(lambda connection: self._entries(connection, query, {"path": os.fsencode(path)}))
        return found[0] if found else None

    def search(self, query: Query, limit: int = -1, offset: int = 0) -> Found:
        """Pictures of which all that the query says holds, the newest first; by default all of them.

        Raises:
            InvalidRequest: no picture has such a model or role; or no history is kept.
            OutputError: the index cannot be used.
        """
        given = {name: valid_text(value) if isinstance(value, str) else value for name, value in asdict(query).items()}
        values = given | {"limit": limit, "offset": offset}

        def found(connection: sqlite3.Connection) -> Found:
            connection.create_function("holds", 3, holds, deterministic=True)
            connection.create_function("is_there", 1, os.path.lexists)
            rows = connection.execute(f"SELECT path, is_there(path) {WANTED}", self._below | values).fetchall()
            _drop_gone(connection, [row for row in rows if not row[1]])
            there = sum(row[1] for row in rows)
            if not there:
                self._check_names(connection, query)
            order = "ORDER BY time DESC, job, number, path LIMIT :limit OFFSET :offset"
            page = f"SELECT {_COLUMNS} {WANTED} AND is_there(path) {order}"
            return Found(self._entries(connection, page, values), there, complete=True)

        self._sure(lambda connection: None)
        if self.rebuilding:
            self.rebuilding.join(REBUILT_WITHIN)
        complete = not (self.rebuilding and self.rebuilding.is_alive())
        return self._sure(found)._replace(complete=complete)

    def companions(self, picture: Path) -> list[tuple[Path, str]]:
        """The files that were made beside a picture, each with its SHA-256."""
        query = "SELECT path, sha256 FROM companions WHERE picture = ? ORDER BY path"
        found = self._sure(lambda connection: connection.execute(query, (os.fsencode(picture),)).fetchall())
        return [(Path(os.fsdecode(path)), digest) for path, digest in found]

    def forget(self, picture: Path) -> None:
        """Drop the records of a picture and of what was made beside it."""
        self._sure(lambda connection: _forget(connection, [(os.fsencode(picture),)]))

    def _entries(self, connection: sqlite3.Connection, query: str, values: dict[str, Any]) -> list[Entry]:
        """What is found; rows whose file is gone are dropped."""
        rows = connection.execute(query, self._below | values).fetchall()
        _drop_gone(connection, rows)
        return [Entry(Path(os.fsdecode(row[0])), *row[1:]) for row in rows]

    def _check_names(self, connection: sqlite3.Connection, query: Query) -> None:
        """Refuse a model or role that no picture has, where there are pictures; roles that we give are known."""
        for what, given in (("model", query.model), ("role", query.role)):
            names = [row[0] for row in connection.execute(NAMES[what], self._below)]
            if given is not None and names and given not in {*names, *(OUR_ROLES if what == "role" else ())}:
                raise InvalidRequest(f"{what}: no picture in the history has {quoted(given)}. {near(given, names)}")

    def _sure(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What `work` returns, for callers that cannot go on without it.

        Raises:
            InvalidRequest: no history is kept.
            OutputError: the index cannot be used.
        """
        if not self.kept:
            raise InvalidRequest(
                "No history is kept, as LAYERDIFFUSE_HISTORY is off: pictures are neither remembered nor deleted. "
                f"They are in {printable(self.output)}; a person can turn the history on for those to come."
            )
        try:
            return self._reached(work)
        except (sqlite3.Error, OSError) as error:
            raise OutputError(
                f"The index of pictures, {printable(self._file)}, cannot be used ({error}). Try again; if it stays "
                "so, mend that file's rights or remove it: it is made anew from the pictures."
            ) from error

    def write(self, work: Callable[[sqlite3.Connection], object]) -> None:
        """Do it in a transaction; where none is possible, with the next that is. Done twice it changes nothing more."""
        if self.kept and self.attempt(lambda connection: (work(connection), True), None) is None:
            self._waiting.append(work)

    def attempt(self, work: Callable[[sqlite3.Connection], T], otherwise: T) -> T:
        """What `work` returns, done in one transaction; `otherwise` where there is no index, or none that works."""
        if not self.kept:
            return otherwise
        try:
            return self._reached(work)
        except (sqlite3.Error, OSError) as error:
            if self._warned.acquire(blocking=False):
                logger.warning("%s cannot be used (%s): image ids will not outlast this server", self._file, error)
            return otherwise

    def _reached(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What `work` returns; a damaged index is made anew first, one that was removed meanwhile is tried again."""
        try:
            return self._transaction(work)
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in _BROKEN:
                logger.warning("the index of pictures is damaged (%s) and is made anew", error)
                _remove(self._file)
            elif code != sqlite3.SQLITE_IOERR:
                raise
            return self._transaction(work)

    def _transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        waited: list[Callable[[sqlite3.Connection], object]] = []

        def done(connection: sqlite3.Connection) -> tuple[T, bool]:
            waited[:] = self._waiting  # one thread at a time gets here: in the order in which they came
            for write in waited:
                write(connection)
            result = work(connection)
            known = connection.execute("SELECT 1 FROM folders WHERE path = :below", self._below).fetchone()
            return result, known is not None

        result, known = self._database.transaction(done)
        for write in waited:
            with contextlib.suppress(ValueError):  # another thread did it, too
                self._waiting.remove(write)
        if not known and os.path.isdir(self.output) and not (self.rebuilding and self.rebuilding.is_alive()):
            self.rebuilding = threading.Thread(target=self._rebuild, daemon=True, name="index")
            self.rebuilding.start()
        return result

    def _rebuild(self) -> None:
        """Read in the newest pictures below the output folder that hold a recipe."""
        try:
            waiting = iter(_newest_files(self.output))
            while batch := list(islice(waiting, BATCH)):
                rows: list[Any] = []
                for path in batch:
                    time.sleep(PAUSE)
                    with contextlib.suppress(OSError):
                        entry = _entry_of(path)
                        rows += [_row(entry)] if entry.prompt is not None else []
                if (
                    self.attempt(lambda db, rows=rows: db.executemany(f"INSERT OR IGNORE {_INSERT}", rows), None)
                    is None
                ):
                    return
            self.attempt(lambda db: db.execute("INSERT OR IGNORE INTO folders VALUES (:below)", self._below), None)
        except Exception:  # a thread's end that nobody sees
            logger.exception("the pictures in %s could not be read in", self.output)


def _entry_of(path: Path) -> Entry:
    """What a file says of itself; raises OSError when it is gone."""
    from layerdiffuse_mcp.images.png import read_id, read_recipe

    recipe: dict[str, Any] = {}
    named = None
    made = path.lstat().st_mtime if (dated := dated_by(path)) is None else dated
    with contextlib.suppress(ImageError):
        recipe = read_recipe(path) or {}
        named = PICTURE_ID.fullmatch(read_id(path) or "")
    job, number = (named[1], int(named[2])) if named else (None, None)
    request = recipe["request"] if isinstance(recipe.get("request"), dict) else {}
    role, prompt, model = _text(recipe.get("role")), _text(request.get("prompt")), _text(request.get("model"))
    width, height, seed = (_number(request.get(name)) for name in ("width", "height", "seed"))
    return Entry(
        path, job, number, role, width, height, seed, prompt, model, _family(request), None, made, _sha256(path)
    )


def _forget(connection: sqlite3.Connection, pictures: list[tuple[bytes]]) -> None:
    connection.executemany("DELETE FROM companions WHERE picture = ?", pictures)
    connection.executemany("DELETE FROM pictures WHERE path = ?", pictures)


def _drop_gone(connection: sqlite3.Connection, rows: list[Any]) -> None:
    """Drop the records of pictures whose file is gone, by rows that begin with its path."""
    _forget(connection, [row[:1] for row in rows if _is_gone(row[0])])


def _is_gone(path: bytes) -> bool:
    """Whether a file was removed from its folder; one whose folder is away, too, comes back with it."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return os.path.isdir(os.path.dirname(path))
    except OSError:  # a disk that does not answer now
        pass
    return False


def _sha256(path: Path) -> str:
    from layerdiffuse_mcp.images.files import open_regular, sha256

    with open_regular(path, follow=False) as file:
        return sha256(file)


def _family(request: dict[str, Any]) -> str | None:
    """The family whose methods the recipe's stages name."""
    match request.get("stages"):
        case [{"method": str(method)}, *_]:
            return next((name for name, card in FAMILIES.items() if method in card.methods), None)
        case _:
            return None


def _text(value: object) -> str | None:
    return valid_text(value[:LONGEST_TEXT]) if isinstance(value, str) else None


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and 0 <= value < 2**63 else None


def _row(entry: Entry) -> tuple[Any, ...]:
    return (os.fsencode(entry.path), *entry[1:])


def _newest_files(output: Path) -> list[Path]:
    """The newest PNG and WebP files below a folder; hidden folders and links are passed over."""
    return [path for _, path in sorted(islice(picture_files(output), SEARCHED), reverse=True)[:READ]]


def _remove(file: Path) -> None:
    """Remove a damaged index, unless another server is about it."""
    with Folder.open(file.parent) as folder:
        if folder.lock() is not False:
            for suffix in ("-wal", "-shm", ""):
                folder.remove(file.name + suffix)
