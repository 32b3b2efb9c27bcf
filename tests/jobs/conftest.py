"""Fixtures of the queue: the hub double, for jobs that download, and a writer that can be held up."""

import threading

import pytest

from layerdiffuse_mcp.outputs.folder import Folder
from tests.hub.conftest import hub as hub


@pytest.fixture
def held_writer(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Set when a second file of a job is about to be written, and what the writer waits for there."""
    reached, go_on = threading.Event(), threading.Event()
    write = Folder.write

    def waits(self: Folder, name: str, data: bytes) -> None:
        if name == "1":
            reached.set()
            assert go_on.wait(30)
        write(self, name, data)

    monkeypatch.setattr(Folder, "write", waits)
    return reached, go_on
