"""Jobs in the index: what was planned, how it ended, and whose server it was, so that they outlast it.

    records = JobRecords(index)
    records.keep([Record(...)])         # whenever a job's state changes
    records.adopted()                   # at a server's start: the latest jobs of servers that are gone
    records.leave()                     # at its end: from now on others may adopt them

A table beside that of the pictures (`index.py`), for this server's output folder alone; `LATEST` jobs are kept. Those
of a server that still runs are its own: each record names its server, by process and the time that this began. With
`history` off nothing is kept or found. Every method may be called in any thread, and reads and writes files: not in an
event loop.
"""

import os
import platform
import secrets
import sqlite3
import time
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

from layerdiffuse_mcp.outputs.index import Index, index_file

LATEST = 200
"""Jobs of an output folder that are kept."""
ELSEWHERE = 86_400.0
"""Seconds after which a server of another machine, of which nothing can be seen from here, counts as gone."""
BEGAN_WITHIN = 2.0
"""Seconds by which the beginnings of one process may differ, as the system tells them."""


class Record(NamedTuple):
    """A job, with times in seconds since 1970. `planned` and `outcome` are JSON; `error` is its code and its words."""

    id: str
    what: str
    client: str
    key: str | None
    state: str
    created: float
    started: float | None
    ended: float | None
    planned: str
    outcome: str | None
    error_code: str | None
    error: str | None


_COLUMNS = ", ".join(Record._fields)
_TABLES = (
    f"CREATE TABLE IF NOT EXISTS jobs (folder, server, {_COLUMNS}, PRIMARY KEY (id))",
    "CREATE INDEX IF NOT EXISTS jobs_by_time ON jobs (folder, created)",
)
_INSERT = f"INSERT OR REPLACE INTO jobs VALUES ({', '.join('?' * (2 + len(Record._fields)))})"
_OLDER = """DELETE FROM jobs WHERE folder = :folder AND id NOT IN
    (SELECT id FROM jobs WHERE folder = :folder ORDER BY created DESC LIMIT :latest)"""


class JobRecords:
    """The jobs of one output folder that outlast their servers; this object stands for one server."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._folder = os.fsencode(index.output)
        self.kept = index.kept
        """Whether anything is."""

    @cached_property
    def server(self) -> str:
        """What this server's records name it."""
        import psutil  # not needed to answer a client's first questions

        began = psutil.Process().create_time()
        return f"{platform.node()}:{os.getpid()}:{began:.3f}:{secrets.token_hex(4)}"

    def keep(self, records: Sequence[Record]) -> None:
        """Take in jobs as they are now; the oldest of many go."""

        def keep(connection: sqlite3.Connection) -> None:
            _make(connection)
            connection.executemany(_INSERT, [(self._folder, self.server, *record) for record in records])
            connection.execute(_OLDER, {"folder": self._folder, "latest": LATEST})

        if records:
            self._index.write(keep)

    def adopted(self) -> list[Record]:
        """Jobs of servers that are gone, the oldest first; from now on they are this server's."""

        def adopt(connection: sqlite3.Connection) -> list[Record]:
            _make(connection)
            query = f"SELECT server, {_COLUMNS} FROM jobs WHERE folder = ? ORDER BY created"
            rows = [row for row in connection.execute(query, (self._folder,)) if not _runs(row[0], row[6])]
            taken = [(self.server, row[1]) for row in rows]
            connection.executemany("UPDATE jobs SET server = ? WHERE id = ?", taken)
            return [Record(*row[1:]) for row in rows]

        return self._index.attempt(adopt, []) if os.path.exists(index_file()) else []

    def leave(self) -> None:
        """Let other servers adopt what is this one's."""

        def leave(connection: sqlite3.Connection) -> None:
            _make(connection)
            connection.execute("UPDATE jobs SET server = '' WHERE server = ?", (self.server,))

        if os.path.exists(index_file()):
            self._index.write(leave)


def _make(connection: sqlite3.Connection) -> None:
    for table in _TABLES:
        connection.execute(table)


def _runs(server: Any, created: Any) -> bool:
    """Whether the server that a record names runs still."""
    import psutil

    try:
        node, pid, began, _ = str(server).rsplit(":", 3)
        if node != platform.node():
            return time.time() - float(created) < ELSEWHERE
        return abs(psutil.Process(int(pid)).create_time() - float(began)) < BEGAN_WITHIN
    except (ValueError, TypeError, OverflowError, psutil.Error):
        return False
