"""The file of tokens: what an entry gives, and which files let nobody in."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest

from layerdiffuse_mcp.cli.parser import main
from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.server.tokens import Token, guarding, hash_of, name_of, new_token, own_settings
from layerdiffuse_mcp.settings import Settings

HASH, OTHER = hash_of("a" * 16), hash_of("b" * 16)


def written(settings: Settings, text: str, name: str = "tokens.toml", mode: int = 0o600) -> Settings:
    file = settings.output.parent / name
    file.write_text(text)
    file.chmod(mode)
    return settings.model_copy(update={"tokens_file": file})


def test_the_command_makes_a_token_whose_entry_lets_it_in(
    settings: Settings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    assert main(["token", "anna"]) == main(["token", "bob-2"]) == 0
    said = capsys.readouterr()
    first, second = (line.rpartition(" ")[2] for line in said.err.splitlines())
    assert first not in said.out
    tokens = guarding(None, written(settings, said.out))
    assert [name_of(tokens, given) for given in (first, second)] == ["anna", "bob-2"]
    assert [name_of(tokens, given) for given in (HASH, "", first[:-1], first + " ")] == [None] * 4


@pytest.mark.parametrize("name", ["", "Anna", "../anna", "a" * 41, "ann a", "anna\n", "-a"])
def test_a_name_that_is_no_folder_s_is_refused(name: str, settings: Settings, capsys: pytest.CaptureFixture[str]):
    if not name.startswith("-"):
        assert main(["token", name]) == 1
        assert "is no name of a token" in capsys.readouterr().err
    with pytest.raises(InvalidRequest, match="has a wrong entry"):
        guarding(None, written(settings, json.dumps({name: {"sha256": HASH}}), "tokens.json"))


def test_a_token_has_a_folder_and_limits_of_its_own(settings: Settings, tmp_path: Path):
    text = f"""[anna]\nsha256 = "{HASH}"\n[bob]\nsha256 = "{OTHER}"\noutput_dir = "{tmp_path}/his"
    read_dirs = ["{tmp_path}/brand"]\nqueue_size = 2\nqueue_pixels = 1_000_000"""
    tokens = guarding(None, written(settings, text))
    anna, bob = (own_settings(name, token, settings) for name, token in tokens.items())
    assert anna.readable == (settings.output / "anna",)
    assert (anna.queue_size, anna.queue_pixels) == (settings.queue_size, settings.queue_pixels)
    assert bob.readable == (tmp_path / "brand", tmp_path / "his")
    assert (bob.output, bob.queue_size, bob.queue_pixels) == (tmp_path / "his", 2, 1_000_000)


def test_a_token_that_is_short_lets_nobody_in_whatever_an_entry_says():
    assert name_of({"anna": Token(sha256=hash_of("short"))}, "short") is None
    assert name_of({"anna": Token(sha256=hash_of("sixteen letters and spaces"))}, "sixteen letters and spaces") is None


def entry(digest: str = HASH, **more: Any) -> dict[str, Any]:
    return {"sha256": digest, **more}


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "none": ({}, "has no entry"),
    "a hash that is none": ({"anna": entry("abc")}, "anna.sha256"),
    "a token in the hash's place": ({"anna": entry(new_token())}, "anna.sha256"),
    "what there is not": ({"anna": entry(colour="red")}, "anna.colour"),
    "a limit of nothing": ({"anna": entry(queue_size=0)}, "anna.queue_size"),
    "one token twice": ({"anna": entry(), "bob": entry()}, "two entries of one token"),
    "one folder twice": (
        {"anna": entry(output_dir="/srv/x"), "bob": entry(OTHER, output_dir="/srv/x")},
        "lets (anna|bob) read /srv/x, where pictures of (anna|bob) lie",
    ),
    "a folder in another's": (
        {"anna": entry(output_dir="/srv/x"), "bob": entry(OTHER, output_dir="/srv/x/y")},
        "lets (anna|bob) read /srv/x",
    ),
    "reading above another's": (
        {"anna": entry(read_dirs=["/srv"]), "bob": entry(OTHER, output_dir="/srv/x")},
        "lets anna read /srv, where pictures of bob lie",
    ),
    "reading below another's": (
        {"anna": entry(read_dirs=["/srv/x/2026-01-01"]), "bob": entry(OTHER, output_dir="/srv/x")},
        "lets anna read /srv/x/2026-01-01, where pictures of bob lie",
    ),
    "reading copies of given pictures": (
        {"anna": entry(read_dirs=[tempfile.gettempdir()])},
        "where this machine keeps temporary files",
    ),
}


@pytest.mark.parametrize(("entries", "why"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_file_is_refused_with_the_reason(entries: dict[str, Any], why: str, settings: Settings):
    with pytest.raises(InvalidRequest, match=why):
        guarding(None, written(settings, json.dumps(entries), "tokens.json"))


def test_a_link_to_another_s_folder_is_no_way_around(settings: Settings, tmp_path: Path):
    (tmp_path / "his").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "his")
    entries = {
        "anna": entry(read_dirs=[str(tmp_path / "link")]),
        "bob": entry(OTHER, output_dir=str(tmp_path / "his")),
    }
    with pytest.raises(InvalidRequest, match="where pictures of bob lie"):
        guarding(None, written(settings, json.dumps(entries), "tokens.json"))


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_may_change_is_refused(mode: int, settings: Settings):
    with pytest.raises(InvalidRequest, match="chmod go-w"):
        guarding(None, written(settings, f'[anna]\nsha256 = "{HASH}"', mode=mode))


def test_what_cannot_be_read_is_refused(settings: Settings, tmp_path: Path):
    with pytest.raises(InvalidRequest, match="is no TOML"):
        guarding(None, written(settings, "[anna"))
    with pytest.raises(InvalidRequest, match="is no JSON"):
        guarding(None, written(settings, "[anna", "tokens.json"))
    for path in (tmp_path / "nowhere.toml", tmp_path):
        with pytest.raises(InvalidRequest, match="cannot be read"):
            guarding(None, settings.model_copy(update={"tokens_file": path}))


def test_one_token_and_a_file_of_them_contradict_each_other(settings: Settings):
    with pytest.raises(InvalidRequest, match="Give either --token or LAYERDIFFUSE_TOKENS_FILE"):
        guarding(new_token(), written(settings, f'[anna]\nsha256 = "{HASH}"'))
