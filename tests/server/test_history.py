"""Pictures made before are found by what they are, and deleted only where they are still ours."""

import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mcp import Client
from mcp.shared.exceptions import MCPError
from PIL import Image

from layerdiffuse_mcp.api.outcome import EncodedFile, ImageResult, Outcome, PictureFacts, Verdict
from layerdiffuse_mcp.images.png import png_bytes
from layerdiffuse_mcp.outputs.index import Index, index_file
from layerdiffuse_mcp.outputs.writer import saved
from layerdiffuse_mcp.server.tools.history import PAGE
from layerdiffuse_mcp.settings import Settings
from tests.results import facts_of, text_of

Connect = Callable[..., AbstractAsyncContextManager[Client]]

pytestmark = pytest.mark.anyio
NOON = datetime(2026, 3, 1, 12).timestamp()
DAY = 86_400


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def made(
    settings: Settings,
    job: str,
    prompt: str = "a red apple",
    size: tuple[int, int] = (8, 8),
    verdict: Verdict | None = "good",
    model: str = "pocket",
    time: float = NOON,
    latent: bool = False,
    **drawn: Any,
) -> ImageResult:
    """A picture that a server has drawn, and remembers."""
    facts = PictureFacts(role="foreground", width=size[0], height=size[1], seed=7, alpha=None, verdict=verdict)
    pixels = np.full((*size[::-1], 4), 255, np.uint8)
    data = png_bytes(pixels, recipe={"format": 2, "role": "foreground", "request": {"prompt": prompt, **drawn}})
    files = [EncodedFile(name=f"{job}.png", data=data, picture=facts)]
    files += [EncodedFile(name=f"{job}.safetensors", data=b"a latent")] if latent else []
    outcome = saved(
        Outcome(encoded=tuple(files), model=model, dated=datetime.fromtimestamp(time)), settings.output, job=job
    )
    [image] = outcome.images
    Index(settings).add(outcome.images, model, job, outcome.latents)
    return image


async def found(client: Client, **asked: Any) -> list[str]:
    """Ids of the pictures that are found."""
    return [image["image_id"] for image in facts_of(await client.call_tool("find_images", asked))["images"]]


async def delete(client: Client, *images: object, **more: Any) -> dict[str, Any]:
    return facts_of(await client.call_tool("delete_images", {"images": [str(image) for image in images], **more}))


async def test_pictures_of_an_earlier_server_are_found_by_what_they_are(connect: Connect, settings: Settings):
    made(settings, "job-1", "a RED apple, glossy", time=NOON)
    made(settings, "job-2", "a green pear", (16, 8), "doubtful", time=NOON + DAY)
    made(settings, "job-3", "ein Äpfelchen, 100% rot_", (8, 16), "failed", "other.safetensors", time=NOON + 2 * DAY)
    async with connect() as client:
        for asked, ids in {
            "{}": ["job-3-1", "job-2-1", "job-1-1"],
            '{"words": "apple red"}': ["job-1-1"],
            '{"words": "äpfelchen 100% rot_"}': ["job-3-1"],
            '{"words": "%"}': ["job-3-1"],
            '{"words": "\' OR 1=1 --"}': [],
            '{"since": "2026-03-02"}': ["job-3-1", "job-2-1"],
            '{"until": "2026-03-02"}': ["job-2-1", "job-1-1"],
            '{"since": "2026-03-01", "until": "2026-03-01"}': ["job-1-1"],
            '{"until": "2026-03-02T12:00"}': ["job-1-1"],
            '{"since": "1h"}': [],
            '{"model": "pocket"}': ["job-2-1", "job-1-1"],
            '{"role": "foreground"}': ["job-3-1", "job-2-1", "job-1-1"],
            '{"size": "16x8"}': ["job-2-1"],
            '{"size": "portrait"}': ["job-3-1"],
            '{"size": "Wide"}': ["job-2-1"],
            '{"size": "square"}': ["job-1-1"],
            '{"verdict": "doubtful"}': ["job-2-1"],
            '{"verdict": "good", "model": "other.safetensors"}': [],
        }.items():
            assert (asked, await found(client, **json.loads(asked))) == (asked, ids)
        result = await client.call_tool("find_images", {"words": "pear"})
    [image] = facts_of(result)["images"]
    assert (image["prompt"], image["width"], image["verdict"]) == ("a green pear", 16, "doubtful")
    assert image["made"] == "2026-03-02 12:00:00"
    assert (
        f'job-2-1, 2026-03-02 12:00:00, foreground, 16x8, seed 7, pocket, doubtful "a green pear": {image["path"]}'
        in (text_of(result))
    )


async def test_pictures_with_one_prompt_are_told_apart(connect: Connect, settings: Settings):
    stage = {"method": "any", "steps": 20, "guidance_scale": 7}
    made(settings, "job-1", stages=[stage], seed=7)
    made(settings, "job-2", stages=[stage | {"steps": 8}], seed=7, reference={"model": "plus", "strength": 0.6})
    made(settings, "job-3", "a pear", stages=[stage])
    async with connect() as client:
        result = await client.call_tool("find_images", {})
    differs = {image["image_id"]: image.get("differs") for image in facts_of(result)["images"]}
    said = {"job-1-1": "20 steps, no reference", "job-2-1": "8 steps, reference plus 0.6", "job-3-1": None}
    assert differs == said
    assert all(f'"a red apple" ({text}): ' in text_of(result) for text in said.values() if text)


async def test_the_list_comes_in_pages_of_bounded_length(connect: Connect, settings: Settings):
    for number in range(PAGE + 1):
        made(settings, f"job-{number}", "apple " * 3000, time=NOON + number)
    async with connect() as client:
        assert await found(client, page=2) == ["job-0-1"]
        result = await client.call_tool("find_images", {})
        facts = facts_of(result)
        assert (facts["total"], facts["page"], facts["pages"], len(facts["images"])) == (PAGE + 1, 1, 2, PAGE)
        assert len(text_of(result)) < 20_000
        assert len(json.dumps(facts)) < 20_000
        beyond = await client.call_tool("find_images", {"page": 3})
    assert beyond.is_error
    assert "there is no page 3" in text_of(beyond)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"since": "yesteryear"}, "since: 'yesteryear' is no date. Give a day as 2026-03-01"),
        ({"since": "2026-02-30"}, "is no date"),
        ({"until": "9999-12-31"}, "is no date"),
        ({"since": "2026-03-02", "until": "2026-03-01"}, "is not before until"),
        ({"size": "huge"}, "size 'huge' is not understood"),
        ({"size": "0x0"}, "size '0x0' is not understood"),
        ({"model": "pokcet"}, "no picture in the history has 'pokcet'. Did you mean pocket?"),
        ({"role": "forground"}, "Allowed: foreground."),
        ({"verdict": "bad"}, "Allowed: good, doubtful, failed."),
        ({"page": 0}, "page"),
        ({"words": "x" * 501}, "words"),
        ({"word": "x"}, "has no parameter 'word'"),
    ],
)
async def test_a_search_that_cannot_be_is_refused_in_words(
    connect: Connect, settings: Settings, asked: dict[str, Any], words: str
):
    made(settings, "job-1")
    async with connect() as client:
        result = await client.call_tool("find_images", asked)
    assert result.is_error
    assert words in text_of(result)


async def test_nothing_found_is_no_error(connect: Connect):
    async with connect() as client:
        result = await client.call_tool("find_images", {"model": "pocket"})
    assert facts_of(result)["total"] == 0
    assert "No picture was found" in text_of(result)


async def test_a_picture_goes_with_its_latent_and_its_record(connect: Connect, settings: Settings):
    image, other = made(settings, "job-1", latent=True), made(settings, "job-2", latent=True)
    async with connect() as client:
        would = await delete(client, "job-1-1", dry_run=True)
        assert image.path.is_file()
        did = await delete(client, "job-1-1", "layerdiffuse://images/job-1-1", image.path)
        assert [Path(file["path"]) for file in did["deleted"]] == [image.path, image.path.with_suffix(".safetensors")]
        assert would == {**did, "dry_run": True}
        assert did["left"] == []
        assert await found(client) == ["job-2-1"]
        with pytest.raises(MCPError, match="There is no job"):
            await client.read_resource("layerdiffuse://images/job-1-1")
    assert sorted(path.name[7:] for path in other.path.parent.iterdir()) == ["job-2.png", "job-2.safetensors"]


async def test_a_sheet_goes_with_its_atlas_and_a_psd_with_what_keeps_its_layers(connect: Connect, settings: Settings):
    image = made(settings, "job-1")
    async with connect() as client:
        sheet = facts_of(await client.call_tool("make_sheet", {"images": [{"image": str(image.path)}]}))
        layers = {"layers": [{"image": str(image.path)}], "output": {"format": "psd"}}
        psd = facts_of(await client.call_tool("compose_layers", layers))
        assert len(list(settings.output.rglob("*.*"))) == 6
        listed = await client.list_resources()
        did = await delete(client, sheet["uri"], psd["path"])
        assert (len(did["deleted"]), did["left"]) == (5, [])
        assert len((await client.list_resources()).resources) == len(listed.resources) - 2
    assert [path for path in settings.output.rglob("*.*")] == [image.path]


async def test_a_file_that_somebody_put_in_the_place_of_ours_stays(
    connect: Connect, settings: Settings, tmp_path: Path
):
    changed, linked, folder, gone = (made(settings, f"job-{number}", latent=True) for number in range(4))
    secret = tmp_path / "secret.png"
    linked.path.rename(secret)
    linked.path.symlink_to(secret)
    Image.open(changed.path).convert("RGB").save(changed.path)
    folder.path.unlink()
    folder.path.mkdir()
    gone.path.unlink()
    async with connect() as client:
        did = await delete(client, changed.path, linked.path, folder.path, gone.path)
    assert (secret.is_file(), linked.path.is_symlink(), folder.path.is_dir(), changed.path.is_file()) == (True,) * 4
    why = {file["image"]: file["why"] for file in did["left"]}
    assert "it has changed" in why[str(changed.path)]
    assert "links are not followed" in why[str(linked.path)]
    assert "a folder" in why[str(folder.path)]
    assert "gone already" in why[str(gone.path)]
    assert all(Path(file["path"]) == gone.path.with_suffix(".safetensors") for file in did["deleted"])


async def test_a_latent_that_was_changed_stays_when_its_picture_goes(connect: Connect, settings: Settings):
    image = made(settings, "job-1", latent=True)
    latent = image.path.with_suffix(".safetensors")
    latent.write_bytes(b"another")
    async with connect() as client:
        did = await delete(client, "job-1-1")
    assert [Path(file["path"]) for file in did["deleted"]] == [image.path]
    assert [file["image"] for file in did["left"]] == [str(latent)]
    assert latent.read_bytes() == b"another"


async def test_a_day_that_was_replaced_by_a_link_is_not_entered(connect: Connect, settings: Settings, tmp_path: Path):
    image = made(settings, "job-1")
    day, moved = image.path.parent, tmp_path / "moved"
    day.rename(moved)
    day.symlink_to(moved)
    async with connect() as client:
        did = await delete(client, "job-1-1", image.path)
    assert did["deleted"] == []
    assert (moved / image.path.name).is_file()


async def test_what_this_product_did_not_write_here_stays(connect: Connect, settings: Settings, tmp_path: Path):
    other = settings.model_copy(update={"output_dir": tmp_path / "other"})
    strange = made(other, "job-9")
    image = made(settings, "job-1")
    own = image.path.with_name("holiday.png")
    Image.new("RGB", (8, 8)).save(own)
    names = (
        "job-9-1",
        strange.path,
        own,
        "job-1",
        "../../etc/passwd",
        "/etc/passwd",
        "https://example.com/a.png",
        "\0",
    )
    async with connect() as client:
        did = await delete(client, *names)
    assert did["deleted"] == []
    assert [file["image"] for file in did["left"]][:2] == ["job-9-1", str(strange.path)]
    assert len(did["left"]) == len(names)
    assert "addresses are not fetched" in did["left"][6]["why"]
    assert strange.path.is_file()
    assert own.is_file()


@pytest.mark.parametrize("images", [[], [""], ["x"] * 101, "job-1-1x" * 1000])
async def test_a_deletion_that_cannot_be_is_refused(connect: Connect, images: object):
    async with connect() as client:
        assert (await client.call_tool("delete_images", {"images": images})).is_error


async def test_without_history_both_tools_say_so(connect: Connect, settings: Settings):
    image = made(settings, "job-1")
    async with connect(history=False) as client:
        for tool, asked in {"find_images": {}, "delete_images": {"images": ["job-1-1", str(image.path)]}}.items():
            result = await client.call_tool(tool, asked)
            assert result.is_error
            assert "LAYERDIFFUSE_HISTORY is off" in text_of(result)
    assert image.path.is_file()


async def test_an_index_that_cannot_be_used_is_not_an_empty_one(connect: Connect, tmp_path: Path):
    (tmp_path / "state").mkdir()
    index_file().parent.write_text("a file where the folder should be")
    async with connect() as client:
        for tool, asked in {"find_images": {}, "delete_images": {"images": ["/x.png"]}}.items():
            result = await client.call_tool(tool, asked)
            assert result.is_error
            assert "cannot be used" in text_of(result)


async def test_what_was_deleted_is_said_to_be_gone(connect: Connect):
    async with connect() as client:
        drawn = await client.call_tool("generate_transparent", {"prompt": "draw", "output": {"preview": False}})
        job, path = facts_of(drawn)["job_id"], facts_of(drawn)["images"][0]["path"]
        await delete(client, f"{job}-1")
        after = await client.call_tool("get_job", {"job_ids": [job]})
        assert path in text_of(after)
        assert "its file is gone, deleted or moved" in text_of(after)
        assert "1 picture, all of them gone, in" in text_of(after)
        assert not [block for block in after.content if block.type == "resource_link"]
        assert facts_of(after)["jobs"][0]["images"][0]["gone"]
        inspected = await client.call_tool("inspect_image", {"image": f"{job}-1"})
        assert text_of(inspected).startswith(f"{job}-1 was deleted or moved. find_images lists")
        for again in (f"{job}-1", path):
            [left] = (await delete(client, again))["left"]
            assert left["why"] == "it is gone already"


async def test_a_job_of_another_server_is_said_to_be_that(connect: Connect, settings: Settings):
    async with connect() as client:
        made(settings, "job-863032aa")
        for tool, given in {"get_job": {"job_ids": ["job-863032aa"]}, "cancel_job": {"job_id": "job-863032aa"}}.items():
            asked = await client.call_tool(tool, given)
            assert asked.is_error
            assert "is no job of this server: another one made it" in text_of(asked)
            assert "find_images" in text_of(asked)
