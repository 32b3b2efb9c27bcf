"""Drawings that follow a picture, through a real client, by a base and a ControlNet of random weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mcp import Client
from PIL import Image

from layerdiffuse_mcp.images.read import levels_apart
from layerdiffuse_mcp.recipes.recipe import read_recipe
from tests.narrow import write_control, write_ip_adapter, write_lora, write_models, write_vision
from tests.results import facts_of, text_of

pytestmark = [pytest.mark.anyio, pytest.mark.own_server()]

OPTIONS = {"model": "tiny-sd15", "steps": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With `models/`, and a picture of a transparent square."""
    folder = tmp_path_factory.mktemp("control")
    write_models(folder / "models", ("sd15",))
    write_control(folder / "models" / "controlnet" / "narrow_canny.safetensors", "sd15")
    write_ip_adapter(folder / "models" / "ip-adapter" / "narrow-plus.safetensors", "sd15", plus=True)
    write_vision(folder / "models" / "ip-adapter" / "image_encoder")
    write_lora(folder / "models" / "loras" / "spice.safetensors")
    square = np.zeros((64, 64, 4), np.uint8)
    square[16:48, 16:48] = 255, 200, 0, 255
    Image.fromarray(square).save(folder / "square.png")
    return folder


def control(folder: Path, **fields: Any) -> dict[str, Any]:
    given = {"model": "narrow_canny", "image": str(folder / "square.png"), "preprocess": "alpha_edge"}
    return {"options": {**OPTIONS, "control": [{**given, **fields}]}}


async def drawn(client: Client, tool: str = "generate_transparent", **given: Any) -> list[Path]:
    fields = {"prompt": "a house", "seed": 7, "size": "64x64", "output": {"preview": False}, "options": OPTIONS}
    made = facts_of(await client.call_tool(tool, {**fields, **given}))
    return [Path(image["path"]) for image in made["images"]]


async def test_it_is_listed_with_what_it_fits_and_follows(client: Client):
    text = text_of(await client.call_tool("list_models", {}))
    assert "ControlNets, to be named in options.control: narrow_canny (SD 1.5, canny)." in text
    assert "IP-Adapters, to be named in options.reference: narrow-plus (SD 1.5)." in text


async def test_a_picture_follows_and_its_recipe_draws_it_again(client: Client, folder: Path):
    [plain] = await drawn(client)
    [followed] = await drawn(client, **control(folder))
    assert levels_apart(plain, followed)
    recipe = read_recipe(followed)
    assert recipe["pictures"]["control_1"]["name"] == "square.png"
    assert len(recipe["weights"]["narrow_canny"]) == 64
    assert str(folder) not in json.dumps(recipe)
    again = facts_of(await client.call_tool("redraw_image", {"image": str(followed)}))
    assert levels_apart(followed, Path(again["images"][0]["path"])) == 0
    changes = {"changes": control(folder, strength=0.2)}
    other = facts_of(await client.call_tool("redraw_image", {"image": str(followed), **changes}))
    assert levels_apart(followed, Path(other["images"][0]["path"]))


async def test_layers_follow_each_or_together_and_enlarged(client: Client, folder: Path):
    some = {"frames": ["foreground"]}
    whole, part = [await drawn(client, "generate_layers", **control(folder, **fields)) for fields in ({}, some)]
    assert any(levels_apart(*pair) for pair in zip(whole, part, strict=True))
    given = control(folder)
    given["options"]["detail"] = {"scale": 2, "strength": 0.5}
    [large] = await drawn(client, **given)
    with Image.open(large) as opened:
        assert opened.size == (128, 128)


async def test_what_may_not_be_read_or_is_no_picture_is_refused_before_the_queue(client: Client, folder: Path):
    (folder / "text.png").write_text("no picture")
    for image, says in {"/etc/hostname": "lies outside the folders", str(folder / "text.png"): "text.png"}.items():
        fields = {"prompt": "a house", **control(folder, image=image)}
        result = await client.call_tool("generate_transparent", fields)
        assert result.is_error
        assert says in text_of(result)


async def test_a_picture_refers_to_another_and_its_recipe_draws_it_again(client: Client, folder: Path):
    given = {"model": "narrow-plus", "image": str(folder / "square.png"), "mask": str(folder / "square.png")}
    [plain] = await drawn(client)
    [referring] = await drawn(client, options={**OPTIONS, "reference": given})
    assert levels_apart(plain, referring)
    assert [*read_recipe(referring)["pictures"]] == ["reference", "reference_mask"]
    again = facts_of(await client.call_tool("redraw_image", {"image": str(referring)}))
    assert levels_apart(referring, Path(again["images"][0]["path"])) == 0


async def test_all_of_it_acts_together_and_the_recipe_draws_it_again(client: Client, folder: Path):
    refer = {"model": "narrow-plus", "image": str(folder / "square.png")}
    detail = {"scale": 1.5, "strength": 0.5}
    options = {**control(folder)["options"], "reference": refer, "loras": {"spice": 0.8}, "detail": detail}
    [whole] = await drawn(client, options=options)
    for name in ("control", "reference", "loras"):
        [without] = await drawn(client, options={key: value for key, value in options.items() if key != name})
        assert levels_apart(whole, without), name
    again = facts_of(await client.call_tool("redraw_image", {"image": str(whole)}))
    assert levels_apart(whole, Path(again["images"][0]["path"])) == 0


async def test_the_pictures_of_a_set_follow_and_refer(client: Client, folder: Path):
    options = {**OPTIONS, **control(folder)["options"], "reference": {"model": "narrow-plus", "image": "square.png"}}
    options["reference"]["image"] = str(folder / "square.png")
    made = await drawn_set(client, {"subjects": ["a cup", "a hat"], "seed": 7, "sheet": False, "options": options})
    plain = await drawn_set(client, {"subjects": ["a cup", "a hat"], "seed": 7, "sheet": False, "options": OPTIONS})
    assert all(levels_apart(*pair) for pair in zip(made, plain, strict=True))


async def test_each_picture_of_a_set_follows_a_pose_of_its_own(client: Client, folder: Path):
    with Image.open(folder / "square.png") as square:
        square.transform(square.size, Image.Transform.AFFINE, (1, 0, 20, 0, 1, 20)).save(folder / "moved.png")
    first, other = str(folder / "square.png"), str(folder / "moved.png")
    given: dict[str, Any] = {"subjects": ["a cup", "a hat"], "seed": 7, "sheet": False}
    control = [{"model": "narrow_canny", "preprocess": "alpha_edge"}]

    def options(*poses: str) -> dict[str, Any]:
        return {**given, "options": {**OPTIONS, "control": control, "poses": [*poses]}}

    same, moved = [await drawn_set(client, options(*poses)) for poses in ((first, first), (first, other))]
    assert [bool(levels_apart(*pair)) for pair in zip(same, moved, strict=True)] == [False, True]
    one = await drawn_set(client, {**options(first, other), "subjects": ["a cup", "a cup"]})
    assert ["a-cup-1" in one[0].name, "a-cup-2" in one[1].name] == [True, True]
    assert levels_apart(*one)
    refused = await client.call_tool("generate_set", options(first))
    assert "1 poses and 2 subjects: give one pose a subject" in text_of(refused)


async def drawn_set(client: Client, given: dict[str, Any]) -> list[Path]:
    facts = facts_of(await client.call_tool("generate_set", {**given, "output": {"preview": False}}))
    return [Path(image["path"]) for image in facts["images"]]
