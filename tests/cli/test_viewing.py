"""`view` says where the viewer is, and ends by Ctrl-C; what is no picture is explained before anything is served."""

import signal
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from PIL import Image

from layerdiffuse_mcp.cli.parser import main


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["none.png"], "There is no file none.png"),
        (["words.png"], "words.png"),
        (["red.png", "--port", "99999"], "Port 99999 of 127.0.0.1 cannot be used"),
    ],
)
def test_what_cannot_be_viewed_is_explained(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], given: list[str], words: str
) -> None:
    monkeypatch.chdir(out)
    (out / "words.png").write_text("words")
    Image.new("RGBA", (4, 4)).save(out / "red.png")
    assert main(["view", "--no-browser", *given]) == 1
    assert words in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_the_viewer_is_at_the_address_that_is_printed_until_ctrl_c(out: Path) -> None:
    Image.new("RGBA", (4, 4)).save(out / "red.png")
    command = [sys.executable, "-m", "layerdiffuse_mcp", "view", str(out / "red.png"), "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert program.stderr is not None
        address, _, token = program.stdout.readline().removeprefix("address: ").strip().partition("#")
        assert address.startswith("http://127.0.0.1:")
        assert httpx2.get(address).status_code == 200
        assert httpx2.post(f"{address}key", headers={"Authorization": f"Bearer {token}"}).status_code == 200
        program.send_signal(signal.SIGINT)
        assert program.wait(60) == 130
        assert program.stderr.read() == "stopped\n"
