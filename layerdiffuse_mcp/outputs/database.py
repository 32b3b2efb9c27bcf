"""A SQLite file that several processes use: a write-ahead log, and one short transaction an operation.

    database = Database(path, TABLES)
    found = database.transaction(lambda connection: connection.execute("SELECT ...").fetchall())
    with database.held(): ...           # for as long as a server runs: it is opened once, not for each operation

It may be used in any thread. Opening and closing it takes a millisecond of the processor, and closing the last
connection writes the log back into the file: whoever has many operations holds it. A file that was removed or replaced
meanwhile is opened anew, and so is one after an operation that failed.
"""

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TypeVar

BUSY = 2.0
"""Seconds to wait for another process's transaction, which takes milliseconds."""
T = TypeVar("T")


class Database:
    """The file, made for its user alone where it is not there.

    Args:
        file: where it is.
        tables: statements that make whatever is not there.
    """

    def __init__(self, file: Path, tables: Sequence[str]) -> None:
        self.file = file
        self._tables = tables
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._holders = 0
        self._lock = threading.Lock()

    def transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What `work` returns, done in one transaction; raises sqlite3.Error, OSError, or whatever it raises."""
        with self._lock:
            try:
                connection = self._begun()
                result = work(connection)
                connection.execute("COMMIT")
            except BaseException:
                self._close()
                raise
            if not self._holders:
                self._close()
            return result

    @contextlib.contextmanager
    def held(self) -> Generator[None]:
        """Leave it open between operations for as long as the block lasts."""
        with self._lock:
            self._holders += 1
        try:
            yield
        finally:
            with self._lock:
                self._holders -= 1
                if not self._holders:
                    self._close()

    def _begun(self) -> sqlite3.Connection:
        """As `_opened`: waits also where SQLite does not, which is while another process opens or closes the file."""
        ends = time.monotonic() + BUSY
        while True:
            try:
                return self._opened()
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > ends:
                    raise
                self._close()
                time.sleep(BUSY / 400)

    def _opened(self) -> sqlite3.Connection:
        """The connection, in a transaction that has begun."""
        if self._connection is not None and self._identity != _identity(self.file):
            self._close()
        if self._connection is not None:
            self._connection.execute("BEGIN IMMEDIATE")
            return self._connection
        _make_private(self.file)
        self._connection = sqlite3.connect(self.file, timeout=BUSY, isolation_level=None, check_same_thread=False)
        self._identity = _identity(self.file)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = NORMAL")
        self._connection.execute("BEGIN IMMEDIATE")
        for table in self._tables:
            self._connection.execute(table)
        return self._connection

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _identity(file: Path) -> tuple[int, int] | None:
    """Which file lies there now."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _make_private(file: Path) -> None:
    """Make the file, if it is not there, for its user alone; SQLite gives the files beside it the same rights.

    One that is there is not opened: to close it would lift the locks of the process's other connections.
    """
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
