"""Listing, fetching and taking models, as a person types it."""

import hashlib
import io
import os
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from layerdiffuse_mcp.cli.parser import main
from layerdiffuse_mcp.families.registry import LAYER_FILES
from layerdiffuse_mcp.hub import catalog
from layerdiffuse_mcp.settings import Settings
from tests.flux_base import write_layers

JOINT = "layer_sd15_joint.safetensors"
KNOWN = "layer_sd15_transparent_attn.safetensors"
CODEC = ("layer_sd15_vae_transparent_decoder.safetensors", "layer_sd15_vae_transparent_encoder.safetensors")
BASE = "realisticVisionV51_v51VAE.safetensors"


@pytest.mark.usefixtures("narrow")
def test_models_lists_what_there_is_and_what_it_can_do(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "240")
    assert main(["models"]) == 0
    printed = capsys.readouterr().out
    assert "pocket" in printed
    assert "tiny-sd15" in printed
    assert "juggernaut-xl-v6" in printed
    assert "cut-out --matting birefnet-lite: not here, 224 MB, MIT" in printed
    assert main(["models", "--subjects", "apple"]) == 0
    assert "pocket knows: red apple, green apple, pineapple\n" in capsys.readouterr().out


@pytest.fixture
def stick(models: Path, tmp_path: Path) -> Path:
    """A folder as it is carried to a machine without a network: files of which no checksum is public, deep below."""
    folder = tmp_path / "stick" / "some" / "folder"
    folder.mkdir(parents=True)
    for name in (
        JOINT,
        "layer_sd15_vae_transparent_decoder.safetensors",
        "layer_sd15_vae_transparent_encoder.safetensors",
    ):
        os.link(models / name, folder / name)
    os.link(models / "tiny-sd15.safetensors", folder / BASE)
    (folder / "notes.txt").write_text("not for us")
    return tmp_path / "stick"


def test_published_files_are_taken_from_a_folder_to_where_the_catalogue_looks(stick, lines, tmp_path) -> None:
    assert main(["models", "prepare", "--from", str(stick)]) == 0
    printed = lines()
    taken = tmp_path / "models" / JOINT
    assert hashlib.sha256(taken.read_bytes()).hexdigest() in printed[f"took {JOINT}"]
    assert "no published checksum" in printed[f"took {JOINT}"]
    base = catalog.find("realistic-vision-v51", Settings())
    assert base.path == tmp_path / "models" / BASE
    assert {path.name for path in (tmp_path / "models").iterdir()} == {JOINT, BASE, *CODEC}


def test_what_a_model_still_lacks_is_listed(stick, capsys) -> None:
    assert main(["models", "prepare", "realistic-vision-v51", "--from", str(stick)]) == 1
    printed = capsys.readouterr().out
    assert f"missing: {KNOWN}" in printed
    assert f"missing: {JOINT}" not in printed
    assert main(["models", "prepare", "realistic-vision-v51", "--from", str(stick), "--task", "layers"]) == 0
    assert f"here already: {JOINT}" in capsys.readouterr().out


def test_a_file_with_another_checksum_than_the_published_one_is_refused(models, stick, capsys, tmp_path) -> None:
    os.link(models / KNOWN, stick / KNOWN)
    assert LAYER_FILES[KNOWN].sha256
    assert main(["models", "prepare", "--from", str(stick)]) == 1
    printed = capsys.readouterr()
    assert f"{KNOWN} is not the published file" in printed.err
    assert f"took {JOINT}" in printed.out
    assert not list((tmp_path / "models").glob(f"*{KNOWN}*"))
    assert not list((tmp_path / "models").glob(".*"))


def test_a_copy_of_the_hubs_cache_is_checked_by_its_own_names(models, tmp_path, capsys) -> None:
    blobs = tmp_path / "stick" / "blobs"
    blobs.mkdir(parents=True)
    data = (models / JOINT).read_bytes()
    for digest, folder in ((hashlib.sha256(data).hexdigest(), "whole"), ("0" * 64, "damaged")):
        (blobs / digest).write_bytes(data)
        (tmp_path / "stick" / folder).mkdir()
        (tmp_path / "stick" / folder / JOINT).symlink_to(blobs / digest)
    assert main(["models", "prepare", "--from", str(tmp_path / "stick" / "damaged")]) == 1
    assert "instead of 0000000000" in capsys.readouterr().err
    assert main(["models", "prepare", "--from", str(tmp_path / "stick" / "whole")]) == 0
    assert "as published" in capsys.readouterr().out


def test_a_file_that_is_no_safetensors_file_is_refused_under_its_own_name(stick, capsys, tmp_path) -> None:
    (stick / "layer_sd15_fg2bg.safetensors").write_bytes(b"not at all")
    assert main(["models", "prepare", "--from", str(stick)]) == 1
    assert "layer_sd15_fg2bg.safetensors" in capsys.readouterr().err
    assert not list((tmp_path / "models").glob("*fg2bg*"))


def test_a_matting_network_is_known_by_its_content_alone(tmp_path, monkeypatch, capsys) -> None:
    from layerdiffuse_mcp.families.matting import MATTING

    data = b"graph" * 9
    for name, network in MATTING.items():
        digest = hashlib.sha256(data if name == "birefnet" else b"").hexdigest()
        remote = network.remote.model_copy(update={"bytes": len(data) + (name != "birefnet"), "sha256": digest})
        monkeypatch.setitem(MATTING, name, network.model_copy(update={"remote": remote}))
    (tmp_path / "stick").mkdir()
    (tmp_path / "stick" / "whatever.onnx").write_bytes(data)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert main(["models", "prepare", "birefnet", "--from", str(tmp_path / "stick")]) == 0
    assert catalog.matting_file(MATTING["birefnet"], Settings()).read_bytes() == data


@pytest.mark.parametrize(
    ("typed", "agrees"), [("y\n", True), ("yes\n", True), ("n\n", False), ("\n", False), (None, False)]
)
def test_what_is_not_for_commercial_use_is_fetched_after_a_yes_alone(typed, agrees, capsys, monkeypatch) -> None:
    person = io.StringIO(typed or "y\n")
    person.isatty = lambda: typed is not None
    monkeypatch.setattr(sys, "stdin", person)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert main(["models", "prepare", "flux-1-dev"]) == 1
    said = capsys.readouterr()
    assert "Licence: flux-1-dev-non-commercial-license. Not all of it is free for commercial use. [y/N]" in said.out
    assert ("HF_HUB_OFFLINE forbids it" in said.err) == agrees
    assert ("Nothing was fetched" in said.err) != agrees


def test_yes_said_at_once_asks_nothing(capsys, monkeypatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert main(["models", "prepare", "flux-1-dev", "--yes"]) == 1
    said = capsys.readouterr()
    assert "[y/N]" not in said.out
    assert "HF_HUB_OFFLINE forbids it" in said.err


def test_a_drawing_fetches_nothing_that_is_not_for_commercial_use(capsys, monkeypatch, tmp_path) -> None:
    write_layers(tmp_path / "models")
    monkeypatch.setenv("LAYERDIFFUSE_AUTO_DOWNLOAD", "1")
    assert main(["generate", "an apple", "--model", "flux-1-dev"]) == 1
    assert "`layerdiffuse-mcp models prepare flux-1-dev` asks" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--from", "none"], "none is no folder"),
        (["--from", __file__], "is no folder"),
        (["--from", "."], "holds none of the published files"),
        (["nothing", "--from", "."], "There is no model 'nothing'"),
        (["--task", "layers", "--from", "."], "name it, too"),
        ([], "Which model?"),
    ],
)
def test_what_cannot_be_prepared_is_explained(given, words, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["models", "prepare", *given]) == 1
    assert words in capsys.readouterr().err
