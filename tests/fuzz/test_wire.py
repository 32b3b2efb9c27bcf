"""Any bytes on standard input of the real server: it goes on, and all that it writes is JSON in UTF-8."""

import itertools
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.damage import damaged
from tests.fuzz.examples import examples

PATIENCE = 60.0
HELLO = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}


def message(method: str, number: object = None, **params: Any) -> bytes:
    """A request, or without a number a notification."""
    identity = {} if number is None else {"id": number}
    return json.dumps({"jsonrpc": "2.0", **identity, "method": method, "params": params}).encode()


class Wire:
    """The program, spoken to in bytes."""

    def __init__(self, folder: Path) -> None:
        environment = {
            "PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "LAYERDIFFUSE_OUTPUT_DIR": str(folder), "LAYERDIFFUSE_WARM_UP": "false",
            "LAYERDIFFUSE_SHARE_WORKERS": "off",
            "LAYERDIFFUSE_MODELS_DIR": str(folder / "models"), "XDG_CACHE_HOME": str(folder / "cache"),
        }  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-m", "layerdiffuse_mcp"], env=environment, cwd=folder,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.answers: queue.Queue[bytes] = queue.Queue()
        self.numbers = itertools.count(1_000_000)
        self.listening = threading.Thread(target=self._listen, daemon=True)
        self.listening.start()
        self.send(message("initialize", 1, **HELLO))
        self.answer_to(1)
        self.send(message("notifications/initialized"))

    def __repr__(self) -> str:
        return "wire"

    def _listen(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self.answers.put(line)

    def send(self, line: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()

    def answer_to(self, number: int) -> dict[str, Any]:
        """What comes for that request; all that comes before it is JSON too."""
        while True:
            answer = json.loads(self.answers.get(timeout=PATIENCE).decode())
            assert answer["jsonrpc"] == "2.0"
            if answer.get("id") == number:
                return answer

    def ping(self) -> None:
        """The server answers."""
        number = next(self.numbers)
        self.send(message("ping", number))
        assert self.answer_to(number)["result"] == {}


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    wire = Wire(tmp_path_factory.mktemp("wire"))
    yield wire
    assert wire.process.stdin is not None
    wire.process.stdin.close()
    assert wire.process.wait(PATIENCE) == 0
    wire.listening.join(PATIENCE)


CALL = message("tools/call", 7, name="generate_transparent", arguments={"prompt": "", "seed": 1})
RIGHT = (
    CALL,
    message("tools/list", 8),
    message("resources/read", 9, uri="layerdiffuse://jobs/job-0"),
    message("prompts/get", 10, name="game_sprites", arguments={"subjects": "a"}),
    message("completion/complete", 11, ref={"type": "ref/prompt", "name": "x"}, argument={"name": "x", "value": "y"}),
    message("notifications/cancelled", requestId=7, reason="no more"),
)
WRONG = (
    b"", b"\0", b"\xff\xfe", b"{", b"null", b"[]", b"0", b'""', b"[" * 100_000, b'{"a":' * 5000, b"9" * 10_000,
    CALL.replace(b'"prompt": ""', b'"prompt": "\\ud800"'), CALL.replace(b'"seed": 1', b'"seed": NaN'),
    CALL.replace(b'"seed": 1', b'"seed": 1e999'), CALL.replace(b'"seed": 1', b'"seed": ' + b"9" * 5000),
    CALL.replace(b'"seed": 1', b'"seed": ' + b"[" * 500 + b"]" * 500),
    CALL.replace(b'"prompt": ""', b'"prompt": "' + b"a" * 5_000_000 + b'"'), CALL.replace(b"7", b"null"),
    CALL.replace(b"7", b'"\\ud800"'), CALL.replace(b"7", b"1.5"), CALL.replace(b"7", b"[]"),
    CALL.replace(b"generate_transparent", b"\\u0000"), CALL.replace(b"generate_transparent", b"a" * 1_000_000),
    message("initialize", 12, **HELLO), message("shutdown", 13), message("exit", 14), message("\0", 15),
    message("prompts/get", 16, name="game_sprites"), message("resources/read", 17, uri="file:///etc/passwd"),
    message("resources/list", 18, cursor="🜚"), message("logging/setLevel", 19, level="loud"),
)  # fmt: skip


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_after_a_wrong_message_the_server_answers(wire: Wire, number: int):
    wire.send(WRONG[number])
    wire.ping()


def test_a_request_that_is_no_json_has_its_answer(wire: Wire):
    wire.send(CALL.replace(b'"prompt": ""', b'"prompt": "a cat \\ud83d"'))
    assert wire.answer_to(7)["error"]["code"] == -32700


@examples(100)
@given(line=st.sampled_from(RIGHT).flatmap(damaged))
def test_after_a_damaged_message_the_server_answers(wire: Wire, line: bytes):
    wire.send(line)
    wire.ping()
