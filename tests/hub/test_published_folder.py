"""A base that is published as a diffusers folder: its indexes say which further files it has."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from layerdiffuse_mcp.api.outcome import Progress
from layerdiffuse_mcp.api.plan import Download
from layerdiffuse_mcp.api.requests import GenerateRequest, apart, validated
from layerdiffuse_mcp.errors import DownloadError, ModelNotFound
from layerdiffuse_mcp.families.qwen_layered import REPO
from layerdiffuse_mcp.hub import catalog, consent
from layerdiffuse_mcp.hub.download import prepare
from layerdiffuse_mcp.hub.local_files import take
from layerdiffuse_mcp.jobs.planner import plan
from layerdiffuse_mcp.settings import Settings
from tests.hub.double import Hub
from tests.layered_base import pipeline
from tests.saving import Engine

NAME = "qwen-image-layered"
SHARDS = "-of-000"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Those of such a repository, by path: few and random weights in several files each."""
    folder = tmp_path_factory.mktemp("published")
    made = pipeline()
    made.save_pretrained(folder, max_shard_size="20KB")
    shutil.rmtree(folder / "vae")
    made.vae.save_pretrained(folder / "vae")
    words = json.loads((folder / "tokenizer" / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer" / "tokenizer.json").unlink()
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(words["vocab"]))
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def published(hub: Hub, files: dict[str, bytes]) -> Hub:
    for path, content in files.items():
        hub.add(REPO, path, content, lfs=path.endswith(".safetensors"))
    return hub


def test_it_is_fetched_whole_and_takes_a_picture_apart(published: Hub, settings: Settings, files: dict[str, bytes]):
    heard: list[Progress] = []
    done = prepare(NAME, settings, heard.append)
    shards = {path for path in files if SHARDS in path}
    assert len(shards) > 3
    assert shards < {one.file.path for one in done.fetched} <= files.keys()
    fractions = [step.fraction for step in heard]
    assert fractions == sorted(fractions)
    entry = catalog.find(NAME, settings)
    assert entry.path is not None
    assert not catalog.missing(entry, settings)
    assert not prepare(NAME, settings, heard.append).fetched
    _draws(settings)


def _draws(settings: Settings) -> None:
    picture = settings.output / "poster.png"
    picture.parent.mkdir(exist_ok=True, parents=True)
    Image.fromarray(np.full((8, 8, 4), 128, np.uint8)).save(picture)
    fields = {"prompt": "a fair", "layers": 2, "steps": 1, "inputs": {"blended": picture}}
    engine = Engine(settings.model_copy(update={"device": "cpu"}))
    try:
        assert engine.drawn(validated(GenerateRequest, apart(fields))).model == NAME
    finally:
        engine.close()


def test_broken_off_it_is_not_ready_and_goes_on_from_there(published: Hub, settings: Settings):
    def stop(progress: Progress) -> None:
        if SHARDS in progress.message:
            published.status = 503

    with pytest.raises(DownloadError):
        prepare(NAME, settings, stop)
    assert not catalog.find(NAME, settings).prepared
    published.status = None
    again = prepare(NAME, settings, lambda _: None)
    assert "model_index.json" not in {one.file.path for one in again.fetched}
    assert catalog.find(NAME, settings).prepared


def test_an_index_that_names_files_elsewhere_brings_none(published: Hub, settings: Settings):
    index = "transformer/diffusion_pytorch_model.safetensors.index.json"
    published.add(REPO, index, json.dumps({"weight_map": {"a": "../../elsewhere.safetensors"}}).encode(), lfs=False)
    with pytest.raises(DownloadError, match="no index of weights"):
        prepare(NAME, settings, lambda _: None)


def test_from_a_disk_the_folder_is_copied_as_it_is(settings: Settings, tmp_path: Path):
    with pytest.raises(DownloadError, match="copy that whole, as it is, into"):
        take(tmp_path, settings, lambda _: None, catalog.find(NAME, settings))


def test_size_and_licence_are_said_before_anything_is_fetched(settings: Settings, tmp_path: Path):
    files = consent.lacking([Download(model=NAME)], settings)
    assert consent.asks(files, consent.ASK_ABOVE)
    question = consent.question(files)
    assert question.startswith(f"Fetch 57.76 GB from {REPO}: ")
    assert question.endswith("Licence: Apache-2.0.")
    said = consent.takes([Download(model=NAME)], settings)
    assert re.search(r"takes 16\.\d+ GB to 58\.\d+ GB of GPU memory and 8 minutes on a GPU .*, as computed\.", said)
    picture = tmp_path / "poster.png"
    Image.new("RGB", (64, 64)).save(picture)
    fields = {"prompt": "a fair", "inputs": {"blended": picture}}
    with pytest.raises(ModelNotFound, match=rf"prepare {NAME}.*task='decompose'.*57.76 GB.*{REPO}.*Apache-2.0"):
        plan(validated(GenerateRequest, apart(fields)), settings)
