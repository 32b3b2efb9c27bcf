"""generate_set as a client meets it: one call, one job, pictures of one canvas; all of its files appear, or none."""

import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from mcp import Client
from mcp_types import ImageContent
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from layerdiffuse_mcp.api.fields import MAX_SEED
from layerdiffuse_mcp.api.outcome import ImageResult, Outcome
from layerdiffuse_mcp.api.plan import Planned
from layerdiffuse_mcp.jobs.job import Job, State
from layerdiffuse_mcp.server.results import of_job
from layerdiffuse_mcp.server.sendable import LONGEST
from layerdiffuse_mcp.server.services import IMAGES
from layerdiffuse_mcp.settings import Settings
from tests.results import facts_of, files_below, text_of

Connect = Callable[..., AbstractAsyncContextManager[Client]]

COLOURS = ["red", "lime", "blue", "yellow", "fuchsia", "aqua", "white", "black"]
SQUARES = [f"square {colour}" for colour in COLOURS]

pytestmark = pytest.mark.anyio


async def draw(client: Client, subjects: list[str], **parameters: Any) -> Any:
    return await client.call_tool("generate_set", {"subjects": subjects, "seed": 7, **parameters})


def picture_at(path: str) -> Image.Image:
    with Image.open(path) as picture:
        picture.load()
        return picture


def files_of(settings: Settings) -> list[Path]:
    return [path for path in files_below(settings.output) if path.suffix != ".sqlite"]


async def test_a_set_of_eight_with_its_sheet_and_atlas_is_one_call(client: Client):
    result = await draw(client, SQUARES, style="flat", cell={"size": "48x32", "anchor": "bottom"})
    facts = facts_of(result)
    [listed] = facts_of(await client.call_tool("list_jobs", {"limit": 1}))["jobs"]
    assert (listed["job_id"], listed["images"]) == (facts["job_id"], len(SQUARES))
    assert len(result.model_dump_json()) < 60_000
    [preview] = [block for block in result.content if isinstance(block, ImageContent)]
    assert len(preview.data) * 3 / 4 <= 22_000
    assert [(one["number"], one["subject"], one["seed"]) for one in facts["images"]] == [
        (number, subject, 7) for number, subject in enumerate(SQUARES, 1)
    ]
    for one, colour in zip(facts["images"], COLOURS, strict=True):
        picture = picture_at(one["path"])
        assert picture.size == (48, 32) == (one["width"], one["height"])
        assert f"square-{colour}" in Path(one["path"]).name
        assert one["path"] in text_of(result)
        assert one["verdict"] == "good"
        assert one["alpha"]["bbox"] == [0, 3, 48, 32]  # as wide as the cell, and on its ground
    assert "the best first" not in text_of(result)


async def test_the_sheet_and_its_atlas_hold_every_picture_under_its_subject(client: Client):
    facts = facts_of(await draw(client, SQUARES[:5], cell={"size": "40x40"}))
    again = facts_of(await client.call_tool("inspect_image", {"image": facts["sheet"]["uri"], "preview": False}))
    sheet, layout = picture_at(facts["sheet"]["path"]), facts["sheet"]
    assert (again["width"], again["height"]) == sheet.size == (layout["width"], layout["height"])
    assert layout["path"] not in [one["path"] for one in facts["images"]]
    by_name, in_order = (json.loads(Path(layout[key]).read_text()) for key in ("atlas", "atlas_array"))
    assert list(by_name["frames"]) == [frame["filename"] for frame in in_order["frames"]] == SQUARES[:5]
    assert (Path(layout["atlas"]).parent / by_name["meta"]["image"]).samefile(layout["path"])
    for one in facts["images"]:
        row, column = divmod(one["number"] - 1, layout["columns"])
        x, y = (place * (40 + layout["spacing"]) for place in (column, row))
        cell = np.asarray(sheet.crop((x, y, x + 40, y + 40)))
        assert np.array_equal(cell, np.asarray(picture_at(one["path"])))


async def test_each_picture_of_a_set_can_be_drawn_again(client: Client):
    facts = facts_of(await draw(client, SQUARES[:2], style="soft", seeds="counted"))
    second = facts["images"][1]
    again = facts_of(await client.call_tool("redraw_image", {"image": second["uri"], "output": {"name": "again"}}))
    held = facts_of(await client.call_tool("inspect_image", {"image": again["images"][0]["uri"]}))
    assert again["images"][0]["seed"] == second["seed"] == 8
    assert held["recipe"]["request"]["prompt"] == "square lime, soft"


@pytest.mark.parametrize(("seeds", "expected"), [("same", [7, 7, 7]), ("counted", [7, 8, 9])])
async def test_seeds_are_the_same_or_counted(client: Client, seeds: str, expected: list[int]):
    facts = facts_of(await draw(client, SQUARES[:3], seeds=seeds, sheet=False, output={"preview": False}))
    assert [one["seed"] for one in facts["images"]] == expected
    assert "sheet" not in facts


async def test_equal_subjects_are_a_set_where_their_seeds_differ(client: Client):
    facts = facts_of(await draw(client, ["square red", "square lime", "square  red"], seeds="counted"))
    drawn = [(one["subject"], one["seed"]) for one in facts["images"]]
    assert drawn == [("square red 1", 7), ("square lime", 8), ("square red 2", 9)]
    assert list(json.loads(Path(facts["sheet"]["atlas"]).read_text())["frames"]) == [name for name, _ in drawn]


async def test_without_a_seed_one_is_drawn_for_all(client: Client):
    facts = facts_of(await client.call_tool("generate_set", {"subjects": SQUARES[:3]}))
    assert len({one["seed"] for one in facts["images"]}) == 1


async def test_a_webp_set_with_latents_keeps_each_latent_beside_its_picture(client: Client):
    output = {"format": "webp", "save_latent": True, "name": "Shapes", "preview": False}
    facts = facts_of(await draw(client, SQUARES[:2], output=output))
    assert [Path(path).stem for path in facts["latents"]] == [Path(one["path"]).stem for one in facts["images"]]
    for path in (facts["sheet"]["path"], *(one["path"] for one in facts["images"])):
        assert picture_at(path).format == "WEBP"
        assert "-shapes-" in path


async def test_what_all_drawings_warn_of_is_said_once(client: Client):
    facts = facts_of(await draw(client, SQUARES[:4]))
    assert facts["warnings"] == ["as always"]


async def test_the_progress_is_that_of_all_drawings(connect: Connect):
    heard: list[tuple[float, str]] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        heard.append((progress, message or ""))

    async with connect(group_jobs=False) as client:
        await client.call_tool(
            "generate_set",
            {"subjects": ["square red 4", "square blue 3", "square red"], "sheet": False},
            progress_callback=hear,
        )
    assert heard == sorted(heard, key=lambda one: one[0])
    assert any(message.startswith("2 of 3: step 1/3") for _, message in heard)
    assert all(progress < 66 for progress, message in heard if message.startswith("2 of 3"))


async def test_subjects_that_are_drawn_together_are_told_of_together(client: Client):
    heard: list[str] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        heard.append(message or "")

    subjects = ["steps 3", "square blue", "square red"]
    await client.call_tool("generate_set", {"subjects": subjects, "sheet": False}, progress_callback=hear)
    assert any(message.startswith("1-3 of 3: step 1/3") for message in heard)


@pytest.mark.parametrize("last", ["steps 100000", "refused", "killed"])
async def test_a_set_that_does_not_end_well_leaves_no_file(connect: Connect, settings: Settings, last: str):
    async with connect(group_jobs=False) as client:
        result = await draw(client, ["square red", last], output={"wait_seconds": 3 if "steps" in last else 60})
        if "steps" in last:
            job = facts_of(result)["job_id"]
            with anyio.fail_after(60):
                await client.call_tool("cancel_job", {"job_id": job})
                facts = {"status": "cancelling"}
                while facts["status"] == "cancelling":
                    await anyio.sleep(0.05)
                    facts = facts_of(await client.call_tool("get_job", {"job_ids": [job]}))["jobs"][0]
            assert facts["status"] == "cancelled"
            assert "images" not in facts
        else:
            assert result.is_error
        assert files_of(settings) == []
        assert facts_of(await draw(client, SQUARES[:1]))["status"] == "done"


@pytest.mark.parametrize(("parameters", "said"), [
    ({"subjects": []}, "1 to 64 subjects"),
    ({"subjects": [f"thing {n}" for n in range(65)]}, "65 are given"),
    ({"subjects": ["a cup", ""]}, "subjects.1 is empty"),
    ({"subjects": ["a cup", " \t"]}, "subjects.1 is empty"),
    ({"subjects": ["a cup", "a pen", "A  cup "]}, "subjects.0 and subjects.2 are equal"),
    ({"subjects": ["a cup", "a cup"]}, "let seeds be counted, say how they differ, or leave one out"),
    ({"subjects": ["a cup"], "seeds": "random"}, "Allowed: same, counted"),
    ({"subjects": ["a cup", "a pen"], "seed": MAX_SEED, "seeds": "counted"}, "choose a smaller seed"),
    ({"subjects": ["a cup"], "cell": {"size": "big"}}, "128x128"),
    ({"subjects": ["a cup"], "cell": {"size": "5000x5000"}}, "1 to 4096"),
    ({"subjects": ["a cup"], "cell": {"anchor": "middle"}}, "Allowed: top-left"),
    ({"subjects": ["a cup"], "cell": {"rows": 2}}, "rows"),
    ({"subjects": ["a cup"], "cell": 64}, "cell must be an object, as in {\"size\": ...} (got 64)"),
    ({"subjects": [f"thing {n}" for n in range(64)], "cell": {"size": "2000x2000"}}, "million pixels"),
    ({"subjects": [f"thing {n}" for n in range(9)], "cell": {"size": "4096x1800"}}, "The sheet would have"),
    ({"subjects": ["a cup"], "options": {"strength": 0.5}}, "strength"),
    ({"subjects": ["a cup"], "options": {"fit": "cover"}}, "fit"),
    ({"subjects": ["a cup"], "prompt": "a cup"}, "no parameter 'prompt'"),
    ({}, "needs subjects"),
])  # fmt: skip
async def test_what_makes_no_set_is_refused_before_anything_is_drawn(
    connect: Connect, settings: Settings, parameters: dict[str, Any], said: str
):
    async with connect() as client:
        result = await client.call_tool("generate_set", parameters)
        assert result.is_error
        assert said in text_of(result)
        assert not facts_of(await client.call_tool("list_jobs", {})).get("jobs")
    assert files_of(settings) == []


async def test_a_foreground_comes_on_the_given_picture_itself(client: Client, tmp_path: Path):
    photo = tmp_path / "photo.png"
    Image.new("RGB", (600, 300), (10, 20, 30)).save(photo)
    drawing = {"prompt": "square red", "background": str(photo), "size": "128x128", "seed": 3}
    result = await client.call_tool("generate_foreground_from_background", drawing)
    facts = facts_of(result)
    foreground, composed, blended = facts["images"]
    assert (composed["role"], composed["width"], composed["height"]) == ("composed", 600, 300)
    assert composed["placement"] == {
        "x": 150, "y": 0, "width": 300, "height": 300, "scale": 2.3438, "crop": [150, 0, 450, 300]
    }  # fmt: skip
    assert "the model saw only the part from 150,0 to 450,300" in text_of(result)
    assert "sketch" in blended["note"]
    assert "placement" not in foreground
    pixels = np.asarray(picture_at(composed["path"]).convert("RGB"))
    assert np.array_equal(pixels[:, :150], np.broadcast_to((10, 20, 30), (300, 150, 3)))
    assert np.array_equal(pixels[150, 260], (255, 0, 0))
    box = np.argwhere((pixels == (255, 0, 0)).all(axis=-1))
    assert abs(box.min(axis=0) - (75, 150 + (32 - 8) * 300 / 128)).max() <= 3


async def test_a_background_says_where_it_lies_behind_the_given_foreground(client: Client, tmp_path: Path):
    Image.new("RGBA", (400, 400), (255, 0, 0, 128)).save(tmp_path / "cut-out.png")
    given = {"prompt": "square red", "foreground": str(tmp_path / "cut-out.png"), "options": {"model": "pocket"}}
    result = await client.call_tool("generate_background_from_foreground", given)
    assert {one["placement"]["scale"] for one in facts_of(result)["images"]} == {3.125}
    assert "it lies on cut-out.png at 0,0, 3.12 times as wide as its own file" in text_of(result)


async def test_a_reason_that_several_pictures_share_is_said_at_the_first_of_them(tmp_path: Path):
    def picture(number: int, reason: str | None) -> ImageResult:
        path = tmp_path / f"{number}.png"
        path.touch()
        verdict = "doubtful" if reason else "good"
        facts = {"role": "foreground", "alpha": None, "verdict": verdict, "reason": reason, "subject": f"s{number}"}
        return ImageResult(path=path, width=8, height=8, seed=7, **facts)

    job, reasons = Job("generate_set", Planned(())), [None, "it is odd", "it is odd", "it is cut off", "it is odd"]
    job.end(State.DONE, Outcome(images=tuple(picture(number, reason) for number, reason in enumerate(reasons, 1))))
    result = of_job(job, "")
    lines = text_of(result).splitlines()[1:6]
    ends = [": opaque layer", ". doubtful: it is odd.", ". doubtful: as 2.", ". doubtful: it is cut off.", ": as 2."]
    assert [line.endswith(end) for line, end in zip(lines, ends, strict=True)] == [True] * 5
    assert [one.get("reason") for one in facts_of(result)["images"]] == reasons


async def test_the_text_of_the_largest_set_is_bounded_and_its_end_is_kept(client: Client):
    subjects = [f"square red, {number} {'x' * 190}" for number in range(64)]
    options = {"model": "pocket"}
    result = await draw(client, subjects, sheet=False, options=options, output={"preview": False, "name": "y" * 60})
    text = text_of(result)
    assert 16_000 < len(text) <= LONGEST
    assert "left out here: the structured content says it" in text
    assert text.endswith("\nWarning: as always")
    assert len(facts_of(result)["images"]) == 64


async def test_a_set_is_found_in_its_order_and_what_is_deleted_is_listed_nowhere(connect: Connect):
    async with connect() as client:
        made = facts_of(await draw(client, [f"square red, {n}" for n in range(11)], output={"save_latent": True}))
        ids = [f"{made['job_id']}-{number}" for number in range(1, 13)]
        found = facts_of(await client.call_tool("find_images", {}))["images"]
        assert [one["image_id"] for one in found] == ids
        assert [one.get("seed") for one in found] == [7] * 11 + [None]  # nothing draws a sheet
        assert len(made["latents"]) == 11
        facts_of(await client.call_tool("delete_images", {"images": [ids[1], ids[11]]}))
        again = await client.call_tool("get_job", {"job_ids": [made["job_id"]], "preview": False})
        [left] = facts_of(again)["jobs"]
        assert "atlas" not in left["sheet"]
        assert left["sheet"]["gone"]
        assert len(left["latents"]) == 10
        gone = [made["sheet"]["atlas"], made["sheet"]["atlas_array"], *({*made["latents"]} - {*left["latents"]})]
        assert not [path for path in gone if path in text_of(again)]


async def test_what_nothing_drew_has_no_seed(client: Client, tmp_path: Path):
    Image.new("RGBA", (8, 8), (255, 0, 0, 128)).save(tmp_path / "dot.png")
    composed = await client.call_tool("compose_layers", {"layers": [{"image": str(tmp_path / "dot.png")}]})
    job = facts_of(composed)["uri"].removeprefix(IMAGES).rpartition("-")[0]
    again = await client.call_tool("get_job", {"job_ids": [job]})
    assert "seed" not in text_of(again)
    assert "seed" not in facts_of(again)["jobs"][0]["images"][0]


async def test_a_recipe_that_is_asked_for_is_in_the_text(client: Client):
    job, recipe = Job("generate_transparent", Planned(())), {"request": {"prompt": "ein Äffchen"}}
    job.end(State.DONE, Outcome(recipe=recipe))
    assert f"Recipe: {json.dumps(recipe, ensure_ascii=False)}" in text_of(of_job(job, "", recipe=True))
    assert "Recipe" not in text_of(of_job(job, ""))
    made = facts_of(await draw(client, SQUARES[:2], sheet=False))
    asked = {"job_ids": [made["job_id"]], "include_recipe": True, "preview": False}
    assert "Recipe: each picture that was drawn holds its own, and inspect_image" in text_of(
        await client.call_tool("get_job", asked)
    )
    inspected = text_of(await client.call_tool("inspect_image", {"image": made["images"][1]["uri"]}))
    assert 'the recipe it was drawn by: "square lime", ' in inspected


async def test_the_parameter_text_of_another_program_is_in_the_text(client: Client, tmp_path: Path):
    said = PngInfo()
    said.add_text("parameters", "a cup\nSteps: 20, Seed: 5")
    Image.new("RGBA", (8, 8), (255, 0, 0, 128)).save(tmp_path / "foreign.png", pnginfo=said)
    inspected = text_of(await client.call_tool("inspect_image", {"image": str(tmp_path / "foreign.png")}))
    assert r"by which redraw_image draws: a cup\nSteps: 20, Seed: 5" in inspected
    assert "no recipe" not in inspected
