"""A job's files appear together, complete and under names of their own, or none does; nothing leaves the folder."""

import errno
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from layerdiffuse_mcp.api.outcome import EncodedFile, Outcome, PictureFacts
from layerdiffuse_mcp.errors import Cancelled, OutputError
from layerdiffuse_mcp.outputs import folder as folders
from layerdiffuse_mcp.outputs.folder import Folder
from layerdiffuse_mcp.outputs.writer import save, saved, sweep

SET = [EncodedFile(name=f"{name}.png", data=name.encode() * 100) for name in ("foreground", "background", "blended")]


@pytest.fixture(params=["relative to open folders", "by paths"])
def output(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An output folder that is not there yet, on a system with `dir_fd` and on one without."""
    monkeypatch.setattr(folders, "DIR_FD", request.param == "relative to open folders" and folders.DIR_FD)
    return tmp_path / "out"


def left(output: Path) -> list[str]:
    """Every file below the output folder, hidden ones too."""
    return sorted(str(path.relative_to(output)) for path in output.rglob("*") if not path.is_dir())


def test_all_files_of_a_job_are_there_under_the_day_and_the_time(output: Path):
    paths = save(output, SET)
    assert [path.read_bytes() for path in paths] == [file.data for file in SET]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d", path.parent.name) for path in paths)
    assert [re.sub(r"^\d{6}-", "", path.name) for path in paths] == [file.name for file in SET]
    assert len(left(output)) == 3
    assert len(os.listdir(output)) == 1


def test_an_outcome_has_paths_once_it_is_saved(output: Path):
    facts = PictureFacts(role="foreground", width=1, height=1, seed=7, alpha=None)
    files = (
        EncodedFile(name="apple.png", data=b"picture", picture=facts),
        EncodedFile(name="apple.safetensors", data=b"latent"),
    )
    outcome = saved(Outcome(encoded=files, model="pocket"), output)
    assert (outcome.images[0].path.read_bytes(), outcome.images[0].seed) == (b"picture", 7)
    assert outcome.latents[0].read_bytes() == b"latent"
    assert outcome.encoded == ()


def test_no_file_is_ever_overwritten_and_those_of_a_set_share_a_number(output: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("layerdiffuse_mcp.outputs.writer.dated", lambda _: ("2026-01-02", "120000"))
    save(output, SET[:1])
    assert [path.name[7:] for path in save(output, SET[:2])] == ["foreground-2.png", "background-2.png"]


def test_a_file_beside_another_keeps_its_stem_when_it_is_numbered(output: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("layerdiffuse_mcp.outputs.writer.dated", lambda now: ("2026-11-23", "120000"))
    pair = [EncodedFile(name=f"poster{suffix}", data=b"x") for suffix in (".psd", ".layers.json")]
    save(output, pair)
    assert [path.name[7:] for path in save(output, pair)] == ["poster-2.psd", "poster-2.layers.json"]


def test_writers_at_once_get_different_names(output: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("layerdiffuse_mcp.outputs.writer.dated", lambda _: ("2026-01-02", "120000"))
    start, got = threading.Barrier(8), list[Path]()

    def write(number: int) -> None:
        start.wait()
        got.extend(save(output, [EncodedFile(name="x.png", data=bytes([number]))]))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {path.read_bytes() for path in got} == {bytes([number]) for number in range(8)}
    assert len(left(output)) == 8


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, 45, errno.ENOSYS, errno.EIO])
def test_a_disk_without_hard_links_holds_them_too(output: Path, monkeypatch: pytest.MonkeyPatch, number: int):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, "no hard links")

    monkeypatch.setattr("layerdiffuse_mcp.outputs.writer.dated", lambda _: ("2026-01-02", "120000"))
    monkeypatch.setattr(os, "link", refuse)
    assert [path.name[7:] for path in save(output, SET) + save(output, SET)] == [
        *(file.name for file in SET),
        *(file.name.replace(".png", "-2.png") for file in SET),
    ]
    assert len(left(output)) == 6


@pytest.mark.parametrize("call", ["fsync", "link", "replace"])
def test_a_write_that_fails_at_the_second_file_leaves_none(output: Path, monkeypatch: pytest.MonkeyPatch, call: str):
    save(output, [EncodedFile(name="before.png", data=b"before")])
    calls, real = list[object](), getattr(os, call)

    def full(*given: object, **named: object) -> object:
        calls.append(given)
        if len(calls) >= 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*given, **named)

    if call != "fsync":  # names are given by links, or where there are none by renaming
        monkeypatch.setattr(os, "replace", full)
        monkeypatch.setattr(os, "link", full)
    monkeypatch.setattr(os, call, full)
    with pytest.raises(OutputError, match=r"No space left.*None of the job's files was kept"):
        save(output, SET)
    assert len(calls) >= 2
    assert [name[-10:] for name in left(output)] == ["before.png"]


@pytest.mark.parametrize("asked", range(4))
def test_a_job_that_is_cancelled_while_it_is_written_leaves_no_file(output: Path, asked: int):
    answers = iter([*[False] * asked, True])
    with pytest.raises(Cancelled):
        save(output, SET, lambda: next(answers))
    assert left(output) == []


def test_once_the_files_are_there_nobody_is_asked_any_more(output: Path):
    asked = list[bool]()
    save(output, SET, lambda: bool(asked.append(bool(left(output)) and len(left(output)) > 3)))
    assert asked == [False] * 4


def test_a_dated_folder_that_is_a_link_is_refused(output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("layerdiffuse_mcp.outputs.writer.dated", lambda _: ("2026-01-02", "120000"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    output.mkdir()
    (output / "2026-01-02").symlink_to(elsewhere)
    with pytest.raises(OutputError, match="2026-01-02 in it is a link"):
        save(output, SET)
    assert os.listdir(elsewhere) == []
    assert os.listdir(output) == ["2026-01-02"]


def test_a_dated_folder_that_becomes_a_link_while_it_is_open_leads_nowhere_else(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("layerdiffuse_mcp.outputs.writer.dated", lambda _: ("2026-01-02", "120000"))
    elsewhere, day = tmp_path / "elsewhere", output / "2026-01-02"
    elsewhere.mkdir()
    below = Folder.below

    def opened_then_swapped(self: Folder, name: str, *given: int, **named: bool) -> Folder:
        opened = below(self, name, *given, **named)
        if name == day.name:
            day.rename(output / "moved")
            day.symlink_to(elsewhere)
        return opened

    monkeypatch.setattr(Folder, "below", opened_then_swapped)
    if folders.DIR_FD:
        save(output, SET)  # into the folder that was opened
    else:
        with pytest.raises(OutputError, match="replaced"):
            save(output, SET)
    assert os.listdir(elsewhere) == []


def test_a_folder_without_the_right_to_write_is_named(output: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:  # for root no folder is without
        raise PermissionError(errno.EACCES, "Permission denied")

    output.mkdir()
    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(OutputError, match=rf"{output}.*Permission denied"):
        save(output, SET)


def test_an_output_folder_that_is_a_file_is_named(output: Path):
    output.write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        save(output, SET)


def test_files_are_readable_by_others_as_the_umask_says(output: Path):
    [path] = save(output, SET[:1])
    (output / "plain").write_text("")
    assert path.stat().st_mode == (output / "plain").stat().st_mode


KILLED = """
import os, signal, sys
from pathlib import Path
from layerdiffuse_mcp.api.outcome import EncodedFile
from layerdiffuse_mcp.outputs.folder import Folder
from layerdiffuse_mcp.outputs.writer import save

def killed(*given):
    os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[2] == "linked":
    Folder.sync = lambda self: killed() if self.path.name[0] != "." else None
elif sys.argv[2] == "kept":
    Folder.remove_folder = killed
else:
    Folder.link = killed
save(Path(sys.argv[1]), [EncodedFile(name=f"{n}.png", data=b"x") for n in range(3)])
"""


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
@pytest.mark.parametrize(("moment", "kept"), [("written", 0), ("linked", 0), ("kept", 3)])
def test_what_a_killed_writer_left_is_swept_and_what_it_had_finished_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, kept: int
):
    monkeypatch.setattr("layerdiffuse_mcp.outputs.writer.YOUNG", 0)
    save(tmp_path, SET[:1])
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), moment], check=False, timeout=60)
    assert len(left(tmp_path)) > 1 + kept
    sweep(tmp_path)
    assert len(left(tmp_path)) == 1 + kept
    assert not any(name.startswith(".") for name in os.listdir(tmp_path))


def test_what_another_server_writes_now_is_not_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("layerdiffuse_mcp.outputs.writer.YOUNG", 0)
    save(tmp_path, SET, lambda: bool(sweep(tmp_path)))
    assert len(left(tmp_path)) == 3


def test_nothing_else_is_swept(output: Path):
    sweep(output)
    assert not output.exists()
    output.mkdir()
    for name in (".unfinished-mine", ".git", "2026-01-02"):
        (output / name).mkdir()
    sweep(output)
    assert len(os.listdir(output)) == 3


@pytest.mark.parametrize("project", ["git", "working directory", "none"])
def test_a_folder_that_is_made_in_a_project_tells_git_to_leave_it_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project: str
):
    (tmp_path / "below").mkdir()
    if project == "git":
        (tmp_path / ".git").mkdir()
    elif project == "working directory":
        monkeypatch.chdir(tmp_path)
    save(tmp_path / "below" / "out", SET)
    ignored = tmp_path / "below" / "out" / ".gitignore"
    assert (ignored.read_text() if ignored.exists() else None) == (None if project == "none" else "*\n")


def test_a_folder_that_was_there_is_left_as_it_is(tmp_path: Path):
    (tmp_path / ".git").mkdir()
    (tmp_path / "out").mkdir()
    save(tmp_path / "out", SET)
    assert not (tmp_path / "out" / ".gitignore").exists()
    (tmp_path / "out" / ".gitignore").write_text("!*.png\n")
    save(tmp_path / "out", SET)
    assert (tmp_path / "out" / ".gitignore").read_text() == "!*.png\n"
