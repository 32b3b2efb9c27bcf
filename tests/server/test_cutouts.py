"""cut_out as a client meets it: by colour, by scene, by two backgrounds, by network; warnings, refusals, consent."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from huggingface_hub import constants
from mcp import Client
from PIL import Image

from layerdiffuse_mcp.families import matting
from layerdiffuse_mcp.hub import catalog
from layerdiffuse_mcp.hub.download import prepare
from layerdiffuse_mcp.settings import Settings
from tests.hub.conftest import hub as hub
from tests.hub.double import Hub, sha256
from tests.images.composites import GREEN, Subject, scenery, subjects
from tests.images.graphs import matting as tiny
from tests.results import facts_of, text_of

Connect = Callable[..., AbstractAsyncContextManager[Client]]

pytestmark = pytest.mark.anyio


@pytest.fixture
def save(tmp_path: Path) -> Callable[[np.ndarray, str], str]:
    """Puts a picture where it may be read."""

    def saved(picture: np.ndarray, name: str) -> str:
        Image.fromarray(picture).save(tmp_path / name)
        return str(tmp_path / name)

    return saved


@pytest.fixture
def disc() -> Subject:
    return subjects()[0]


def off(found: dict[str, Any], subject: Subject) -> float:
    alpha = np.asarray(Image.open(found["path"]))[..., 3]
    return float(np.abs(alpha - 255 * subject.alpha).mean())


async def test_one_call_cuts_a_subject_out(connect: Connect, save: Callable[..., str], disc: Subject):
    ground = np.rint(255 * scenery(0)).astype(np.uint8)
    image = save(disc.on(GREEN), "mug.png")
    calls: dict[str, dict[str, Any]] = {
        "the background colour #1ab240": {"image": image},
        "by the background colour #1ab240": {"image": image, "background": "#00b140"},
        "its background picture": {
            "image": save(disc.on(ground / 255), "scene.png"),
            "background": save(ground, "empty.png"),
        },
        "where it joins the border": {"image": image, "background": " Border "},
        "exactly": {"image": image, "second_image": save(disc.on((1, 1, 1)), "white.png")},
    }
    async with connect() as client:
        for words, arguments in calls.items():
            found = await client.call_tool("cut_out", {**arguments, "output": {"preview": False}})
            facts = facts_of(found)
            assert words in facts["method"], facts["method"]
            assert facts["method"] in text_of(found)
            assert facts["alpha"]["has_transparency"]
            assert off(facts, disc) <= 1
            assert "warnings" not in facts
        webp = await client.call_tool("cut_out", {"image": image, "output": {"format": "webp", "name": "A mug"}})
        assert facts_of(webp)["path"].endswith("a-mug-cutout.webp")
        looked = facts_of(await client.call_tool("inspect_image", {"image": facts_of(webp)["uri"]}))
        assert looked["halo"] == "no halo"


async def test_what_is_doubtful_says_so(connect: Connect, save: Callable[..., str], disc: Subject):
    holed = disc.on(GREEN)
    holed[70:90, 70:90] = holed[0, 0]
    plain = np.full((50, 50, 3), 90, np.uint8)
    calls: dict[str, dict[str, Any]] = {
        "Nothing is left": {"image": save(plain, "plain.png")},
        "Everything was kept": {"image": save(plain, "plain.png"), "background": "red"},
        "lies within the subject": {"image": save(holed, "holed.png")},
    }
    async with connect() as client:
        for words, arguments in calls.items():
            result = await client.call_tool("cut_out", arguments)
            assert any(words in warning for warning in facts_of(result)["warnings"]), words
            assert f"Warning: {facts_of(result)['warnings'][0]}" in text_of(result)
        kept = facts_of(await client.call_tool("cut_out", {"image": save(holed, "holed.png"), "background": "border"}))
    assert "warnings" not in kept
    with Image.open(kept["path"]) as picture:
        assert picture.getpixel((80, 80)) == (*holed[0, 0], 255)


async def test_what_cannot_be_cut_out_is_refused_in_words(
    connect: Connect, save: Callable[..., str], disc: Subject, tmp_path: Path
):
    image = save(disc.on(GREEN), "disc.png")
    small = save(disc.on(GREEN)[:90], "small.png")
    busy = save(np.rint(255 * scenery(0)).astype(np.uint8), "busy.png")
    refused: dict[str, dict[str, Any]] = {
        "not one colour": {"image": busy},
        "differ in size": {"image": image, "background": small},
        "There is no file": {"image": image, "background": "greenish"},
        "give that picture too": {"image": image, "second_background": "white"},
        "leave translucent out": {"image": image, "second_image": image, "translucent": True},
        "give either model, or": {"image": image, "model": "birefnet", "background": "white"},
        "leave background out": {"image": image, "second_image": image, "background": "border"},
        "too alike": {"image": image, "second_image": image},
        "unknown matting network": {"image": image, "model": "rmbg"},
        "give a colour such as white": {"image": image, "background": "checkerboard"},
    }
    async with connect() as client:
        for words, arguments in refused.items():
            result = await client.call_tool("cut_out", arguments)
            assert result.is_error, words
            assert words in text_of(result), text_of(result)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def served(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A hub that has a small matting network under a published one's name."""
    network, content = tiny("birefnet-lite")
    monkeypatch.setitem(matting.MATTING, network.name, network)
    hub.add(network.remote.repo, network.remote.path, content)
    return hub


async def test_a_network_is_fetched_on_an_explicit_wish_alone_and_then_finds_the_subject(
    connect: Connect, served: Hub, save: Callable[..., str], settings: Settings
):
    ground = np.rint(255 * scenery(3)).astype(np.uint8) // 3 + 80
    red = Subject("red", subjects()[0].alpha, np.broadcast_to((0.95, 0.05, 0.05), (160, 160, 3)), False)
    photo = {"image": save(red.on(ground / 255), "photo.png"), "model": "birefnet-lite"}
    async with connect() as client:
        refused = await client.call_tool("cut_out", photo)
        assert refused.is_error
        assert "`layerdiffuse-mcp models prepare birefnet-lite` or the tool prepare_model" in text_of(refused)
        assert served.requests == []
        prepare("birefnet-lite", settings, lambda _: None)
        result = await client.call_tool("cut_out", photo)
    found = facts_of(result)
    assert "by the network birefnet-lite" in found["method"]
    assert off(found, red) < 6
    assert "warnings" not in found


@pytest.mark.parametrize("how", ["prepare_model", "auto_download"])
async def test_a_wish_or_a_setting_fetches_the_network_without_the_engine(
    connect: Connect, served: Hub, save: Callable[..., str], disc: Subject, how: str
):
    photo = {"image": save(disc.on(GREEN), "photo.png"), "model": "birefnet-lite"}
    async with connect(auto_download=how == "auto_download") as client:
        if how == "prepare_model":
            assert not (await client.call_tool("prepare_model", {"model": "birefnet-lite"})).is_error
        assert "birefnet-lite" in facts_of(await client.call_tool("cut_out", photo))["method"]
        jobs = facts_of(await client.call_tool("list_jobs", {}))
        assert jobs["total"] == 2


async def test_a_network_that_is_replaced_on_the_disk_is_not_run(
    connect: Connect, served: Hub, save: Callable[..., str], settings: Settings, disc: Subject
):
    prepare("birefnet-lite", settings, lambda _: None)
    path = catalog.matting_file(matting.MATTING["birefnet-lite"], settings)
    path.resolve().write_bytes(tiny(logits=False)[1])
    async with connect() as client:
        result = await client.call_tool("cut_out", {"image": save(disc.on(GREEN), "x.png"), "model": "birefnet-lite"})
    assert "not the published one" in text_of(result)
    assert "models prepare birefnet-lite" in text_of(result)
    done = prepare("birefnet-lite", settings, lambda _: None)
    assert [one.file.name for one in done.fetched] == ["model.onnx"]
    assert sha256(path.read_bytes()) == matting.MATTING["birefnet-lite"].remote.sha256


async def test_a_network_that_needs_more_memory_than_is_free_is_not_begun(
    connect: Connect, served: Hub, save: Callable[..., str], disc: Subject, monkeypatch: pytest.MonkeyPatch
):
    network = matting.MATTING["birefnet-lite"]
    large = network.model_copy(update={"memory": psutil.virtual_memory().total * 2})
    monkeypatch.setitem(matting.MATTING, network.name, large)
    async with connect() as client:
        result = await client.call_tool("cut_out", {"image": save(disc.on(GREEN), "x.png"), "model": network.name})
    assert "of memory" in text_of(result)
    assert "give background" in text_of(result)


def test_a_pinned_file_enters_the_cache_under_its_commit_and_is_nobodys_main(served: Hub, settings: Settings):
    prepare("birefnet-lite", settings, lambda _: None)
    remote = matting.MATTING["birefnet-lite"].remote
    folder = Path(constants.HF_HUB_CACHE) / "models--someone--matting-ONNX"
    assert (folder / "snapshots" / str(remote.revision) / remote.path).is_file()
    assert not (folder / "refs").exists()
    assert all(f"/resolve/{remote.revision}/" in asked.path for asked in served.asked("hub"))
