"""Reading what an agent names: only regular files below the allowed folders, whatever changes meanwhile."""

import ast
import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

import layerdiffuse_mcp
from layerdiffuse_mcp.errors import AccessDenied, ImageError
from layerdiffuse_mcp.images.files import sha256
from layerdiffuse_mcp.recipes.recipe import GivenPicture
from layerdiffuse_mcp.server import access
from layerdiffuse_mcp.server.access import find_picture, open_readable
from layerdiffuse_mcp.server.contents import Contents
from layerdiffuse_mcp.settings import Settings

Swap = Callable[[Callable[[], None]], None]
SECRET = b"a secret"


@pytest.fixture(params=["said by the system", "looked up again"], autouse=True)
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A system that says where an open file lies, and one that does not."""
    if request.param == "looked up again":
        readlink = os.readlink

        def unknown(path: str, **given: int) -> str:
            if str(path).startswith("/proc/"):
                raise FileNotFoundError(path)
            return readlink(path, **given)

        monkeypatch.setattr(os, "readlink", unknown)
    return request.param


@pytest.fixture
def allowed(tmp_path: Path) -> Path:
    """The one folder that may be read, beside `outside`."""
    for name in ("allowed", "outside"):
        (tmp_path / name).mkdir()
    (tmp_path / "allowed" / "cup.png").write_bytes(b"a cup")
    for name in ("cup.png", "secret.png"):
        (tmp_path / "outside" / name).write_bytes(SECRET)
    return tmp_path / "allowed"


@pytest.fixture
def outside(allowed: Path) -> Path:
    return allowed.parent / "outside"


@pytest.fixture
def settings(allowed: Path) -> Settings:
    return Settings(output_dir=allowed / "out", read_dirs=(allowed,))


def content(name: str | Path, settings: Settings) -> bytes:
    with open_readable(name, settings) as opened:
        return opened.file.read()


def test_a_file_is_open_with_its_real_path(settings: Settings, allowed: Path):
    (allowed / "link.png").symlink_to("cup.png")
    with open_readable(str(allowed / "link.png"), settings) as opened:
        assert (opened.path, opened.size, opened.file.read()) == (allowed / "cup.png", 5, b"a cup")
        assert not os.get_inheritable(opened.file.fileno())


def test_a_relative_name_is_one_file_that_of_the_output_folder_first(
    settings: Settings, allowed: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(outside)
    with pytest.raises(ImageError, match=r"There is no file secret\.png") as refused:
        content("secret.png", settings)  # that of the working directory is not allowed
    assert all(str(folder) in str(refused.value) for folder in settings.readable)
    assert content("cup.png", settings) == b"a cup"  # nor is its own of this name
    (allowed / "here").mkdir()
    (allowed / "here" / "cup.png").write_bytes(b"a cup that is here")
    monkeypatch.chdir(allowed / "here")
    settings = Settings(**settings.model_dump())
    assert content("cup.png", settings) == b"a cup that is here"
    (allowed / "out").mkdir()
    (allowed / "out" / "cup.png").write_bytes(b"another cup")
    assert content("cup.png", settings) == b"another cup"


def test_what_is_outside_is_refused_alike_whether_it_exists_or_not(settings: Settings, allowed: Path, outside: Path):
    (allowed / "link.png").symlink_to(outside / "cup.png")
    (allowed / "folder").symlink_to(outside)
    for there, missing in (
        (outside / "cup.png", outside / "none.png"),
        (allowed / ".." / "outside" / "cup.png", allowed / ".." / "outside" / "none.png"),
        (allowed / "folder" / "cup.png", allowed / "folder" / "none.png"),
        (Path("/dev/zero"), Path("/dev/none")),
    ):
        errors = list[str]()
        for name in (there, missing):
            with pytest.raises(AccessDenied) as refused:
                content(name, settings)
            errors.append(str(refused.value).partition(" lies ")[2])
        assert errors[0] == errors[1]
    with pytest.raises(AccessDenied):
        content(allowed / "link.png", settings)


def test_only_regular_files_are_read_and_none_is_waited_for(settings: Settings, allowed: Path):
    (allowed / "folder").mkdir()
    os.mkfifo(allowed / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(allowed / "socket.png"))
        for name in ("folder", "pipe.png", "socket.png"):
            with pytest.raises(ImageError, match=f"{name} cannot be read"):
                content(allowed / name, settings)


def test_a_device_below_an_allowed_folder_is_refused(allowed: Path):
    with pytest.raises(ImageError, match="device"):
        content("/dev/zero", Settings(output_dir=allowed, read_dirs=(Path("/dev"),)))


NAMES = {
    "NUL": "a\0b.png",
    "too long": "x" * 5000,
    "too long below a folder": "x/" * 3000,
    "no such user": "~nobody-of-that-name/x.png",
    "a lone surrogate": "a\ud800b.png",
    "nothing": "",
    "a dot": ".",
}


@pytest.mark.parametrize("case", NAMES)
def test_a_name_that_can_be_none_is_refused_in_few_words(settings: Settings, case: str, tmp_path: Path):
    for name in (NAMES[case], str(tmp_path / "allowed" / NAMES[case])):
        with pytest.raises((ImageError, AccessDenied)) as refused:
            content(name, settings)
        str(refused.value).encode("utf-8")
        assert len(str(refused.value)) < 400
        assert "\0" not in str(refused.value)


def test_links_in_a_circle_are_refused(settings: Settings, allowed: Path):
    (allowed / "a").symlink_to("b")
    (allowed / "b").symlink_to("a")
    with pytest.raises((ImageError, AccessDenied)):
        content(allowed / "a", settings)


def test_a_file_larger_than_any_picture_is_refused_by_its_size_alone(settings: Settings, allowed: Path):
    small = settings.model_copy(update={"max_pixels": 4096})
    with (allowed / "huge.png").open("wb") as file:
        file.truncate(10 * 2**40)
    with pytest.raises(ImageError, match=r"MB, and files of at most 17 MB are read"):
        content(allowed / "huge.png", small)


@pytest.fixture
def swap(monkeypatch: pytest.MonkeyPatch) -> Swap:
    """Do something after a name was checked and before it is opened."""

    def then(change: Callable[[], None]) -> None:
        real = access.open_regular

        def changed(path: Path, **given: bool) -> object:
            change()
            return real(path, **given)

        monkeypatch.setattr(access, "open_regular", changed)

    return then


def test_a_file_that_becomes_a_link_before_it_is_opened_is_refused(
    settings: Settings, allowed: Path, outside: Path, swap: Swap
):
    def change() -> None:
        (allowed / "cup.png").unlink()
        (allowed / "cup.png").symlink_to(outside / "cup.png")

    swap(change)
    with pytest.raises((ImageError, AccessDenied)):
        content(allowed / "cup.png", settings)


def test_a_folder_that_becomes_a_link_before_its_file_is_opened_is_refused(
    settings: Settings, allowed: Path, outside: Path, swap: Swap
):
    (allowed / "set").mkdir()
    (allowed / "set" / "cup.png").write_bytes(b"a cup")

    def change() -> None:
        (allowed / "set").rename(allowed / "moved")
        (allowed / "set").symlink_to(outside)

    swap(change)
    with pytest.raises(AccessDenied):
        content(allowed / "set" / "cup.png", settings)


def test_a_file_that_becomes_a_pipe_before_it_is_opened_is_refused(settings: Settings, allowed: Path, swap: Swap):
    def change() -> None:
        (allowed / "cup.png").unlink()
        os.mkfifo(allowed / "cup.png")

    swap(change)
    with pytest.raises(ImageError, match="cannot be read"):
        content(allowed / "cup.png", settings)


def test_nothing_stays_open_after_a_refusal(settings: Settings, allowed: Path, outside: Path, swap: Swap):
    def change() -> None:
        (allowed / "set").rename(allowed / "moved")
        (allowed / "set").symlink_to(outside)

    (allowed / "set").mkdir()
    (allowed / "set" / "cup.png").write_bytes(b"a cup")
    swap(change)
    with pytest.raises(AccessDenied):
        content(allowed / "set" / "cup.png", settings)
    assert open_below(allowed.parent) == []


def open_below(folder: Path) -> list[str]:
    """What this process has open there."""
    found = list[str]()
    for number in os.listdir("/dev/fd"):
        with contextlib.suppress(OSError):  # other threads open and close files of their own
            found.append(os.readlink(f"/dev/fd/{number}"))
    return [path for path in found if path.startswith(str(folder))]


def wanted(path: Path, name: str = "", **facts: int | None) -> GivenPicture:
    with path.open("rb") as file:
        return GivenPicture.model_validate({"name": name or path.name, "sha256": sha256(file), **facts})


def test_a_picture_of_a_recipe_is_found_by_name_or_by_size_and_only_with_its_content(settings: Settings, allowed: Path):
    def find(picture: GivenPicture) -> Path:
        with find_picture(picture, settings.readable, lambda path: open_readable(path, settings)) as opened:
            return opened.path

    (allowed / "below" / "deeper").mkdir(parents=True)
    cup = allowed / "cup.png"
    picture, old = wanted(cup, bytes=5), wanted(cup, name="/home/anna/cup.png")
    assert find(picture) == find(old) == cup
    moved = cup.rename(allowed / "below" / "deeper" / "cup.png")
    cup.write_bytes(b"a jug")  # of the same name and size
    assert find(picture) == find(old) == moved
    renamed = moved.rename(moved.with_name("mug.png"))
    assert find(picture) == renamed
    with pytest.raises(ImageError, match=r"starts from cup.png.*moved or has changed"):
        find(old)
    renamed.write_bytes(b"a mug")
    with pytest.raises(ImageError, match="moved or has changed"):
        find(picture)


def test_a_recipe_does_not_tell_whether_a_file_outside_exists_or_what_it_holds(settings: Settings, outside: Path):
    real = wanted(outside / "cup.png", name=str(outside / "cup.png"), bytes=len(SECRET))
    other = real.model_copy(update={"sha256": "0" * 64})
    missing = other.model_copy(update={"name": str(outside / "none" / "cup.png")})
    said = set[str]()
    for picture in (real, other, missing):
        with pytest.raises(ImageError) as refused:
            find_picture(picture, settings.readable, lambda path: open_readable(path, settings))
        said.add(str(refused.value).replace(picture.sha256[:10], ""))
    assert len(said) == 1


def test_a_search_ends(settings: Settings, allowed: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(access, "SEARCHED", 20)
    for number in range(30):
        (allowed / f"folder-{number:02}").mkdir()
        (allowed / f"folder-{number:02}" / "jug.png").write_bytes(bytes([number]))
    last = wanted(allowed / "folder-29" / "jug.png", bytes=1)
    with pytest.raises(ImageError, match="moved or has changed"):
        find_picture(last, [allowed], lambda path: open_readable(path, settings))


def test_a_copy_is_private_stays_as_it_was_and_goes_with_its_last_user(settings: Settings, allowed: Path):
    contents = Contents()
    with open_readable(allowed / "cup.png", settings) as opened:
        first = contents.keep(opened)
    (allowed / "cup.png").write_bytes(b"a jug")
    assert (first.name, first.read_bytes()) == ("cup.png", b"a cup")
    assert first.parents[1].stat().st_mode & 0o077 == 0
    (allowed / "cup.png").write_bytes(b"a cup")
    with open_readable(allowed / "cup.png", settings) as opened:
        assert contents.keep(opened) == first
    contents.release([first, allowed / "cup.png"])
    assert first.exists()
    contents.release([first])
    assert not first.exists()
    assert (allowed / "cup.png").exists()
    contents.close()
    assert not first.parents[1].exists()


def test_copies_of_a_block_that_fails_are_released(settings: Settings, allowed: Path):
    contents, kept = Contents(), list[Path]()

    def fails() -> None:
        with contents.keeping() as keep, open_readable(allowed / "cup.png", settings) as opened:
            kept.append(keep(opened))
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert not kept[0].exists()
    contents.close()


def test_a_full_disk_for_copies_is_an_error_in_words(
    settings: Settings, allowed: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    from layerdiffuse_mcp.errors import OutputError

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with open_readable(allowed / "cup.png", settings) as opened, pytest.raises(OutputError, match="no room for a copy"):
        Contents().keep(opened)


OPENS = {"open", "read_bytes", "read_text", "fdopen"}
MAY_OPEN = {"images/files.py", "outputs/folder.py"}
"""The one way in, which `access.py` and readers of copies take, and the one way out."""
ALLOWED_CALLS = {
    "images/composition.py": {("archive", "open")},  # of a file that is open, as is the next
    "images/documents.py": {("archive", "open")},
    "images/read.py": {("Image", "open")},
    "images/matting.py": {("path", "read_bytes")},  # a network that the catalogue found
    "outputs/writer.py": {("Folder", "open")},
    "outputs/state.py": {("_file(name)", "open")},
    "outputs/database.py": {("os", "open")},  # its own file in the state folder
    "outputs/index.py": {("Folder", "open")},
    "outputs/removal.py": {("Folder", "open")},
    "recipes/sanity.py": {("resources.files('layerdiffuse_mcp.recipes') / 'sanity_checks.txt'", "read_text")},
    "cli/drawing.py": {("", "read_text")},  # what its user names, who is no agent
    "cli/sanity.py": {("", "read_text")},
    "cli/viewing.py": {("webbrowser", "open")},  # an address of ours
    "server/apps.py": {("_FOLDER / name", "read_text")},  # a page of ours
    "server/icons.py": {("Path(__file__).parent / 'icon.png'", "read_bytes")},
    "server/stdio.py": {("", "open"), ("os", "open")},  # descriptors of this process, and the null device
    "server/services.py": {("self", "open")},  # a client's services
    "server/contents.py": {("Folder", "open"), ("temporary", "open")},  # the private copies
}
NO_AGENTS_NAMES = ("engine/", "hub/", "text/", "backends/", "pocket/")
"""They read models, and of what an agent named only the copies that a request names."""


def test_nothing_but_access_opens_a_name_that_an_agent_gave():
    package = Path(layerdiffuse_mcp.__file__).parent
    found = list[str]()
    for path in package.rglob("*.py"):
        name = path.relative_to(package).as_posix()
        if name.startswith(NO_AGENTS_NAMES) or name in MAY_OPEN:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                function = node.func
                called = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
                owner = ast.unparse(function.value) if isinstance(function, ast.Attribute) else ""
                if called in OPENS and (owner, called) not in ALLOWED_CALLS.get(name, set()):
                    found.append(f"{name}:{node.lineno} {ast.unparse(node)[:60]}")
    assert found == []
