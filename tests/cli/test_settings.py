"""The list of settings, and the log file."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from layerdiffuse_mcp import logs
from layerdiffuse_mcp.cli.parser import main
from layerdiffuse_mcp.settings import Settings, variable


def test_each_setting_is_listed_with_its_value_and_where_it_comes_from(capsys, monkeypatch) -> None:
    monkeypatch.setenv("LAYERDIFFUSE_QUEUE_SIZE", "7")
    monkeypatch.setenv("LAYERDIFFUSE_DTYPE", "${DTYPE}")
    assert main(["settings", "--wait-seconds", "9", "--no-history"]) == 0
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines() if "LAYERDIFFUSE_" in line}
    assert rows.keys() == {variable(name) for name in Settings.model_fields}
    assert rows["LAYERDIFFUSE_QUEUE_SIZE"][1:3] == ["7", "environment"]
    assert rows["LAYERDIFFUSE_WAIT_SECONDS"][1:3] == ["9", "flag"]
    assert rows["LAYERDIFFUSE_HISTORY"][1:3] == ["off", "flag"]
    assert rows["LAYERDIFFUSE_IDLE_TIMEOUT"][1:3] == ["900", "default"]
    assert rows["LAYERDIFFUSE_DTYPE"][1:5] == ["auto", "default", "(the", "variable"]


@pytest.fixture
def root() -> logging.Logger:
    """The root logger, which is as it was afterwards."""
    logger = logging.getLogger()
    before = [*logger.handlers]
    yield logger
    for handler in logger.handlers[:]:
        if handler not in before:
            logger.removeHandler(handler)
            handler.close()


def test_a_log_file_is_turned_over_when_it_is_full(root, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(logs, "LARGEST", 1000)
    logs.log_to(tmp_path / "new" / "x.log")
    for number in range(100):
        logging.getLogger("layerdiffuse_mcp").warning("the message %s", number)
    files = sorted((tmp_path / "new").iterdir())
    assert [path.name for path in files] == ["x.log", "x.log.1", "x.log.2", "x.log.3"]
    assert all(path.stat().st_size <= 1000 for path in files)
    assert "WARNING layerdiffuse_mcp: the message 99" in files[0].read_text()


def test_a_log_file_takes_text_that_is_no_utf_8(root, tmp_path) -> None:
    before = {*root.handlers}
    logs.log_to(tmp_path / "x.log")
    [handler] = {*root.handlers} - before
    handler.handle(logging.makeLogRecord({"msg": "half a character: \ud800", "levelname": "WARNING", "name": "x"}))
    assert "half a character" in (tmp_path / "x.log").read_text()


def test_another_process_logs_to_a_file_of_its_own(root, tmp_path) -> None:
    logs.log_to(tmp_path / "x.log", "worker")
    assert (tmp_path / "x-worker.log").is_file()


@pytest.mark.parametrize("name", [".", "file/x.log", "a\0b"])
def test_a_log_file_that_cannot_be_written_is_explained_before_anything_is_served(name, tmp_path, capsys) -> None:
    (tmp_path / "file").write_text("")
    assert main(["serve", "--log-file", os.path.join(tmp_path, name)]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_what_is_logged_to_a_file_still_goes_to_stderr(tmp_path: Path) -> None:
    code = (
        "import logging\n"
        "from layerdiffuse_mcp.server import app\n"
        "async def serve(self): logging.getLogger('x').warning('hello')\n"
        "app.LayerServer.serve_stdio = serve\n"
        "app.serve_stdio(app.Settings())\n"
    )
    environment = os.environ | {"LAYERDIFFUSE_LOG_FILE": str(tmp_path / "x.log")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "hello" in done.stderr
    assert "hello" in (tmp_path / "x.log").read_text()
