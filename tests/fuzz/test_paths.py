"""Any path to any tool that takes one: nothing outside the allowed folders is opened, and nothing hangs."""

import os
import socket
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.examples import bounded, examples
from tests.fuzz.serving import Server
from tests.results import facts_of, text_of

TAKE_A_PATH: dict[str, dict[str, Any]] = {
    "inspect_image": {"image": "{}", "preview": False},
    "compose_layers": {"layers": [{"image": "{}"}], "output": {"preview": False}},
    "compose_layers, source": {"source": "{}", "output": {"preview": False}},
    "compose_layers, background": {"layers": [{"image": "{disc}"}], "background": "{}"},
    "cut_out": {"image": "{}"},
    "cut_out, background": {"image": "{disc}", "background": "{}"},
    "cut_out, second": {"image": "{disc}", "second_image": "{}", "second_background": "white"},
    "cut_out, second background": {"image": "{disc}", "second_image": "{disc}", "second_background": "{}"},
    "make_sheet": {"images": [{"image": "{disc}"}, {"image": "{}"}]},
    "edit_transparent": {"prompt": "steps 1", "image": "{}"},
    "edit_transparent, mask": {"prompt": "steps 1", "image": "{disc}", "mask": "{}"},
    "upscale_transparent": {"prompt": "steps 1", "image": "{}"},
    "redraw_image": {"image": "{}"},
    "redraw_image, picture": {"parameters": "x\nSteps: 1, Seed: 1, CFG scale: 2", "pictures": {"image": "{}"}},
    "generate_background_from_foreground": {"prompt": "steps 1", "foreground": "{}"},
    "generate_foreground_from_background": {"prompt": "steps 1", "background": "{}"},
    "decode_transparent_latent": {"latent": "{}"},
    "encode_transparent_image": {"image": "{}"},
}
"""A call for each parameter that is a path, by tool; `{}` is where the path stands, `{disc}` a right picture."""


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture in a folder that may not be read."""
    folder = tmp_path_factory.mktemp("private")
    path = folder / "secret.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\nhush-hush")
    return path


@pytest.fixture(scope="module")
def traps(folder: Path, secret: Path) -> dict[str, Path]:
    """What stands in an allowed folder and is no file of it."""
    traps = {name: folder / name for name in ("link.png", "loop.png", "fifo.png", "socket.png", "zero.png", "dir.png")}
    traps["link.png"].symlink_to(secret)
    traps["loop.png"].symlink_to("loop.png")
    os.mkfifo(traps["fifo.png"])
    with socket.socket(socket.AF_UNIX) as made:
        before = Path.cwd()
        os.chdir(folder)  # the address of a socket is short
        made.bind("socket.png")
        os.chdir(before)
    traps["zero.png"].symlink_to("/dev/zero")
    traps["dir.png"].mkdir()
    (folder / "linked").symlink_to(secret.parent)
    return traps


def spellings(path: Path) -> list[str]:
    """A path as people, shells and browsers write it."""
    above = "../" * 20
    plain = str(path)
    return [
        plain, f"file://{plain}", f"file://localhost{plain}", f"FILE://{plain}", above + plain.lstrip("/"),
        f"out/{above}{plain.lstrip('/')}", f"//{plain}", plain.replace("/", "//"), plain.replace(".", "%2e"),
        f"file://{plain.replace('/', '%2f')}", plain + "/", plain + "/.", plain + "\0", plain + " ", plain.upper(),
        f"./{plain}", f"{plain}/../{path.name}", f"layerdiffuse://images/{plain}",
    ]  # fmt: skip


STRANGE = [
    ".", "..", "/", "~", "~root", "~nobody/x.png", "-", "*", "|id", "$(id)", "${HOME}", "con", "\\\\host\\share\\x.png",
    "C:\\x.png", "http://127.0.0.1/x.png", "data:image/png;base64,aGk=", "file:", "file://", "file:///", "x" * 300,
    "x/" * 2000, "\0", "\ud800.png", "\u202e.png", "/dev/stdin", "/dev/fd/0", "/dev/tty", "/proc/self/environ",
    "/proc/self/cwd/x.png", "/proc/self/root/etc/passwd", "job-0", "job--1", "layerdiffuse://images/job-0-²",
]  # fmt: skip

opened: list[str] | None = None


def _listen(event: str, given: tuple[Any, ...]) -> None:
    if opened is not None and event == "open" and isinstance(given[0], str | bytes):
        opened.append(os.fsdecode(given[0]))


sys.addaudithook(_listen)  # for good: a hook cannot be taken away


@contextmanager
def watched() -> Generator[list[str]]:
    """The names of all files that this process opens meanwhile."""
    global opened
    opened = []
    try:
        yield opened
    finally:
        opened = None


def put(value: Any, names: dict[str, str]) -> Any:
    """Arguments with what their placeholders stand for."""
    match value:
        case dict():
            return {key: put(inner, names) for key, inner in value.items()}
        case list():
            return [put(inner, names) for inner in value]
        case _:
            return names.get(value, value)


@pytest.mark.parametrize("call", TAKE_A_PATH)
@examples(40)
@given(data=st.data())
def test_no_path_leads_outside_or_hangs(
    server: Server, folder: Path, secret: Path, traps: dict[str, Path], call: str, data: st.DataObject
):
    targets = [secret, folder / "linked" / secret.name, Path("/dev/zero"), Path("/etc/passwd"), *traps.values()]
    strategy = st.sampled_from(STRANGE) | st.sampled_from(targets).flatmap(lambda p: st.sampled_from(spellings(p)))
    path = data.draw(strategy, "path")
    with bounded(), watched() as names:
        result = server.call(
            call.partition(",")[0], put(TAKE_A_PATH[call], {"{}": path, "{disc}": str(folder / "disc.png")})
        )
        server.wait_until_idle()
    assert result.is_error
    assert "hush-hush" not in text_of(result)
    forbidden = {str(secret), os.path.realpath(secret), "/dev/zero", "/etc/passwd", str(traps["link.png"])}
    assert not forbidden & {os.path.normpath(name) for name in names}


def test_after_all_that_a_picture_is_read(server: Server, folder: Path):
    assert facts_of(server.call("inspect_image", {"image": str(folder / "disc.png")}))["width"] == 32
