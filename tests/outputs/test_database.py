"""The database: whole transactions, whoever removes its file, and one connection for as long as it is held."""

import sqlite3
import stat
import threading
from pathlib import Path

import pytest

from layerdiffuse_mcp.outputs.database import Database

TABLES = ("CREATE TABLE IF NOT EXISTS words (word)",)


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(tmp_path / "state" / "words.sqlite", TABLES)


def say(database: Database, word: str) -> None:
    database.transaction(lambda connection: connection.execute("INSERT INTO words VALUES (?)", (word,)))


def said(database: Database) -> list[str]:
    found = database.transaction(lambda connection: connection.execute("SELECT word FROM words").fetchall())
    return [row[0] for row in found]


def log_of(database: Database) -> Path:
    """SQLite's log, which goes when the last connection is closed."""
    return database.file.with_name(f"{database.file.name}-wal")


def test_it_is_its_user_s_alone_and_open_only_while_it_is_held(database: Database):
    say(database, "one")
    assert stat.S_IMODE(database.file.stat().st_mode) == 0o600
    assert not log_of(database).exists()
    with database.held():
        say(database, "two")
        with database.held():
            say(database, "three")
        assert log_of(database).exists()
        assert said(Database(database.file, TABLES)) == ["one", "two", "three"]
    assert not log_of(database).exists()


def test_what_fails_leaves_nothing_and_the_next_works(database: Database):
    def half(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO words VALUES ('half')")
        raise KeyError

    with database.held():
        say(database, "one")
        with pytest.raises(KeyError):
            database.transaction(half)
        say(database, "two")
        assert said(database) == ["one", "two"]


def test_a_file_that_is_removed_or_replaced_while_it_is_held_is_made_anew(database: Database):
    with database.held():
        say(database, "lost")
        database.file.unlink()
        say(database, "two")
        assert said(database) == said(Database(database.file, TABLES)) == ["two"]


def test_threads_share_it(database: Database):
    with database.held():
        threads = [threading.Thread(target=say, args=(database, str(number))) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(said(database), key=int) == [str(number) for number in range(20)]
