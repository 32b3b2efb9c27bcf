"""Qwen-Image-2.1 as it is published: asked for with its licence, fetched as it lies there, drawn with where named."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import Qwen2VLImageProcessorPil

from layerdiffuse_mcp.api.plan import Download
from layerdiffuse_mcp.api.requests import GenerateRequest, validated
from layerdiffuse_mcp.errors import ConsentNeeded, ModelNotFound
from layerdiffuse_mcp.families.qwen21 import LICENCE, REPO, TRANSPARENT
from layerdiffuse_mcp.hub import catalog, consent
from layerdiffuse_mcp.hub.download import prepare
from layerdiffuse_mcp.jobs.planner import plan
from layerdiffuse_mcp.settings import Settings
from tests.hub.double import Hub
from tests.qwen21_base import write
from tests.saving import Engine

NAME = "qwen-image-2.1"
SMALL = {"width": 64, "height": 64, "fit": "as_is", "steps": 2}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Those of the repository, by path: few and random weights, the large networks with an index."""
    base = write(tmp_path_factory.mktemp("published"))
    for network, stem in (("transformer", "diffusion_pytorch_model"), ("text_encoder", "model")):
        shard = f"{stem}-00001-of-00001.safetensors"
        (base / network / f"{stem}.safetensors").rename(base / network / shard)
        (base / network / f"{stem}.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    (base / "text_encoder" / "generation_config.json").unlink()
    processor = base / "processor"
    Qwen2VLImageProcessorPil.from_pretrained(processor).save_pretrained(processor)
    (processor / "processor_config.json").unlink()
    (processor / "chat_template.jinja").unlink()
    return {path.relative_to(base).as_posix(): path.read_bytes() for path in base.rglob("*") if path.is_file()}


@pytest.fixture
def published(hub: Hub, files: dict[str, bytes]) -> Hub:
    for path, content in files.items():
        hub.add(REPO, path, content, lfs=path.endswith(".safetensors"))
    return hub


def request(**fields: object) -> GenerateRequest:
    return validated(GenerateRequest, {"prompt": "an apple", "model": NAME, **fields})


def test_it_is_fetched_whole_and_draws_and_edits(published: Hub, settings: Settings, files: dict[str, bytes]):
    done = prepare(NAME, settings, lambda _: None)
    assert {one.file.path for one in done.fetched} == files.keys()
    assert catalog.find(None, settings).name == "pocket"
    settings.output.mkdir(exist_ok=True, parents=True)
    photo = settings.output / "photo.png"
    Image.fromarray(np.full((8, 8, 3), 128, np.uint8)).save(photo)
    engine = Engine(settings.model_copy(update={"device": "cpu"}))
    try:
        for given in ({}, {"image": photo}):
            assert engine.drawn(request(**SMALL, **given)).licences == {"model": LICENCE}
    finally:
        engine.close()


def test_whatever_the_settings_allow_nobody_fetches_it_unasked(published: Hub, settings: Settings):
    allowed = settings.model_copy(update={"auto_download": True})
    planned = plan(request(), allowed)
    assert planned.downloads == (Download(model=NAME, methods=(TRANSPARENT.id,)),)
    with pytest.raises(ConsentNeeded, match=f"{LICENCE}, which is not free for commercial use"):
        consent.check_licences(planned.downloads, allowed)
    assert consent.asks(consent.lacking(planned.downloads, allowed), consent.ANY_SIZE)
    assert not published.requests


def test_size_licence_memory_and_time_are_said_before_anything_is_fetched(settings: Settings):
    wanted = [Download(model=NAME)]
    question = consent.question(consent.lacking(wanted, settings))
    assert question.startswith(f"Fetch 33.06 GB from {REPO}: ")
    assert question.endswith(f"Licence: {LICENCE}. Not all of it is free for commercial use.")
    said = "A picture with qwen-image-2.1 takes 17.53 GB to 39.20 GB of GPU memory and 27 seconds on a GPU"
    assert consent.takes(wanted, settings).startswith(said)
    with pytest.raises(ModelNotFound, match=rf"prepare {NAME}.*task='transparent'.*33.06 GB.*{REPO}.*{LICENCE}"):
        plan(request(), settings)


def test_a_base_of_ones_own_has_its_licence_unless_it_says_another(settings: Settings):
    folder = write(settings.models_dir / "mine")
    assert catalog.find("mine", settings).licence == LICENCE
    assert catalog.find(None, settings).name == "pocket"
    listed = f'[[base]]\nname = "bought"\npath = "{Path(folder.name)}"\nlicence = "agreed on"\n'
    (settings.models_dir / "models.toml").write_text(listed)
    assert catalog.find("bought", settings).licence == "agreed on"
