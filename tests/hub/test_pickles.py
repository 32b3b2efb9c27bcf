"""A base whose codec is published as a pickle, under a licence against commercial use: fetched, made, drawn with."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from layerdiffuse_mcp.api.plan import Download
from layerdiffuse_mcp.api.requests import GenerateRequest, PrepareRequest, validated
from layerdiffuse_mcp.backends.conversion import convert
from layerdiffuse_mcp.engine.transparency import conversion
from layerdiffuse_mcp.errors import ConsentNeeded, DownloadError, ModelNotFound
from layerdiffuse_mcp.families.flux import CODEC, LAYER_REPO, PICKLE, REPO, TRANSPARENT
from layerdiffuse_mcp.families.spec import Task
from layerdiffuse_mcp.hub import catalog, consent
from layerdiffuse_mcp.hub.download import prepare
from layerdiffuse_mcp.jobs.planner import plan
from layerdiffuse_mcp.settings import Settings
from tests.flux_base import pickled, write
from tests.hub.double import Hub
from tests.saving import Engine

NAME = "flux-1-dev"
PICTURE = {"prompt": "an apple", "model": NAME, "width": 64, "height": 64, "fit": "as_is", "steps": 1}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Those of the base's repository, by path: few and random weights, the large networks with an index."""
    folder = tmp_path_factory.mktemp("published")
    base = write(folder)
    for network, stem in (("transformer", "diffusion_pytorch_model"), ("text_encoder_2", "model")):
        whole = base / network / f"{stem}.safetensors"
        whole.rename(whole.with_name(f"{stem}-00001-of-00001.safetensors"))
        names = f'{{"weight_map": {{"a": "{stem}-00001-of-00001.safetensors"}}}}'
        (base / network / f"{stem}.safetensors.index.json").write_text(names)
    clip = base / "text_encoder" / "model.safetensors"  # as older versions of transformers name its weights
    save_file({f"text_model.{key}": weight.clone() for key, weight in load_file(clip).items()}, clip)
    for tokenizer in ("tokenizer", "tokenizer_2"):
        (base / tokenizer / "special_tokens_map.json").write_text("{}")
    words = json.loads((base / "tokenizer" / "tokenizer.json").read_text())["model"]
    (base / "tokenizer" / "tokenizer.json").unlink()
    (base / "tokenizer" / "vocab.json").write_text(json.dumps(words["vocab"]))
    (base / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    found = {path.relative_to(base).as_posix(): path.read_bytes() for path in base.rglob("*") if path.is_file()}
    return found | {TRANSPARENT.file: (folder / TRANSPARENT.file).read_bytes()}


@pytest.fixture
def published(hub: Hub, files: dict[str, bytes]) -> Hub:
    for path, content in files.items():
        repo = LAYER_REPO if path == TRANSPARENT.file else REPO
        hub.add(repo, path, content, lfs=path.endswith(".safetensors"))
    hub.add(LAYER_REPO, PICKLE, pickled())
    return hub


def picture() -> GenerateRequest:
    return validated(GenerateRequest, PICTURE)


def made(settings: Settings) -> tuple[Path, ...]:
    """The codec's files in the models folder, of the pickle that was fetched."""
    pickle = catalog.located(catalog.LAYER_FILES[CODEC.decoder].fetched, settings)
    assert pickle is not None
    settings.models_dir.mkdir(exist_ok=True)
    return tuple(settings.models_dir / name for name in conversion.convert(pickle, settings.models_dir))


def test_it_is_fetched_whole_and_draws_once_its_codec_is_made(
    published: Hub, settings: Settings, files: dict[str, bytes]
):
    done = prepare(NAME, settings, lambda _: None)
    assert {one.file.path for one in done.fetched} == {PICKLE, *files}
    [pickle] = [one.path for one in done.fetched if one.path.name == PICKLE]
    [note] = done.notes
    assert f"`layerdiffuse-mcp models convert {pickle}`" in note
    with pytest.raises(ModelNotFound, match=rf"made of the pickle {PICKLE}, which is on this machine: `layer"):
        plan(picture(), settings)
    assert not catalog.tasks(catalog.find(NAME, settings), settings)[Task.TRANSPARENT]
    engine = Engine(settings.model_copy(update={"device": "cpu"}))
    with pytest.raises(ModelNotFound, match=f"models convert {pickle}"):
        engine.drawn(PrepareRequest(model=NAME))
    assert engine.status()["loaded"] == []
    made(settings)
    assert prepare(NAME, settings, lambda _: None).notes == ()
    outcome = engine.drawn(picture())
    engine.close()
    assert set(outcome.licences.values()) == {"flux-1-dev-non-commercial-license"}


def test_beside_the_pickle_in_the_hubs_cache_the_files_are_found(published: Hub, settings: Settings):
    prepare(NAME, settings, lambda _: None)
    pickle = catalog.located(catalog.LAYER_FILES[CODEC.decoder].fetched, settings)
    assert pickle is not None
    assert convert(pickle) == [pickle.with_name(name) for name in CODEC.files]
    entry = catalog.find(NAME, settings)
    assert catalog.layer_file(entry, CODEC.decoder, settings) == pickle.with_name(CODEC.decoder)
    assert catalog.tasks(entry, settings)[Task.TRANSPARENT]


def test_files_that_were_made_elsewhere_need_no_pickle(published: Hub, settings: Settings, tmp_path: Path):
    write(tmp_path / "elsewhere")
    shutil.copytree(tmp_path / "elsewhere", settings.models_dir)
    assert catalog.missing(catalog.find("flux-small", settings), settings) == []


def test_it_is_drawn_with_only_where_it_is_named(published: Hub, settings: Settings):
    write(settings.models_dir)
    prepare(NAME, settings, lambda _: None)
    assert catalog.find(None, settings).name == "pocket"
    assert plan(picture(), settings).tasks[0].model == NAME
    with pytest.raises(ModelNotFound) as raised:
        catalog.find("flax", settings)
    assert "prepare_model with model='flux'" not in str(raised.value)


def test_whatever_the_settings_allow_nobody_fetches_it_unasked(published: Hub, settings: Settings):
    allowed = settings.model_copy(update={"auto_download": True})
    made_elsewhere = settings.models_dir
    write(made_elsewhere)
    planned = plan(picture(), allowed)
    assert planned.downloads == (Download(model=NAME, methods=(TRANSPARENT.id,)),)
    with pytest.raises(ConsentNeeded, match="flux-1-dev-non-commercial-license, which is not free for commercial use"):
        consent.check_licences(planned.downloads, allowed)
    files = consent.lacking(planned.downloads, allowed)
    assert consent.asks(files, consent.ANY_SIZE)
    assert consent.question(files).endswith("Not all of it is free for commercial use.")
    assert not published.requests


def test_a_drawing_fetches_nothing_that_it_could_not_draw_with(published: Hub, settings: Settings):
    with pytest.raises(ModelNotFound, match=f"models prepare {NAME}"):
        plan(picture(), settings.model_copy(update={"auto_download": True}))


def test_of_a_gated_repository_is_said_where_to_agree(published: Hub, settings: Settings):
    published.repos[REPO].gated = True
    with pytest.raises(DownloadError, match=rf"agree to conditions first\. Open {published.url}/{REPO} .*HF_TOKEN"):
        prepare(NAME, settings, lambda _: None)
