"""Pictures enlarged and redrawn: as an edit where one tile does, without seams or lost alpha where several do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from layerdiffuse_mcp.api.outcome import Outcome
from layerdiffuse_mcp.api.requests import GenerateRequest, validated
from layerdiffuse_mcp.engine.models.model import Model
from layerdiffuse_mcp.errors import Cancelled, ImageError, InvalidRequest
from layerdiffuse_mcp.families.spec import Task
from layerdiffuse_mcp.images.read import levels_apart
from layerdiffuse_mcp.recipes.recipe import read_recipe, request_from
from tests.narrow import write_models
from tests.saving import Engine

Draw = Callable[..., Outcome]
SMALL = {"width": 64, "height": 64, "fit": "as_is", "steps": 1}
CUT = {"width": 64, "height": 64, "overlap": 32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With `models/`, and a disc of 96 x 96 pixels: red, soft at its edge, green below what is transparent."""
    folder = tmp_path_factory.mktemp("detail")
    write_models(folder / "models")
    y, x = np.mgrid[:96, :96]
    distance = np.hypot(x - 47.5, y - 47.5)
    disc = np.zeros((96, 96, 4), np.uint8)
    disc[..., 3] = np.clip((34 - distance) * 64, 0, 255)
    disc[..., :3] = np.where((distance < 36)[..., None], (200, 40, 40), (0, 255, 0))
    Image.fromarray(disc).save(folder / "disc.png")
    return folder


@pytest.fixture
def draw(engine: Engine) -> Draw:
    def run(*hears: Any, **fields: Any) -> Outcome:
        given = {"prompt": "a red apple", "model": "pocket", "seed": 7, "steps": 2, **fields}
        return engine.run(validated(GenerateRequest, given), *hears)

    return run


def pixels(made: Outcome, role: str = "foreground") -> Any:
    [path] = [image.path for image in made.images if image.role == role]
    return np.asarray(Image.open(path)).astype(int)


def test_at_scale_1_in_one_tile_it_is_an_edit(draw: Draw, folder: Path) -> None:
    disc = folder / "disc.png"
    edited = draw(image=disc, strength=0.6, width=96, height=96, fit="as_is")
    again = draw(image=disc, strength=0, detail={"scale": 1, "strength": 0.6})
    assert levels_apart(edited.images[0].path, again.images[0].path) == 0


def test_several_tiles_show_no_seam_and_keep_the_alpha_as_one_does(draw: Draw, folder: Path) -> None:
    """Measured: alpha drifts by 5.1 of 255 in four tiles, by 5.6 in one; colour steps at borders are as elsewhere."""
    large = np.asarray(Image.open(folder / "disc.png").resize((192, 192), Image.Resampling.BICUBIC)).astype(int)
    fields = {"prompt": "a red ball", "image": folder / "disc.png", "strength": 0, "steps": 4}
    drifts: list[float] = []
    for tiling in ({"width": 192, "height": 192}, {"width": 128, "height": 128, "overlap": 64}):
        made = pixels(draw(**fields, detail={"scale": 2, "strength": 0.3, "tiling": tiling}))
        drifts.append(np.abs(made[..., 3] - large[..., 3]).mean())
        seen = made[..., 3:] > 128
        assert ((made[..., 1:2] > made[..., :1]) & seen).sum() == 0  # nothing of the green below
        steps = np.abs(np.diff(made[..., :3], axis=1)) * seen[:, 1:] * seen[:, :-1]
        assert steps[:, [63, 64, 127, 128]].mean() < 1.3 * steps[:, 40:152].mean()
    assert max(drifts) < 8
    assert drifts[1] < drifts[0] + 1


def test_a_drawing_with_detail_is_as_much_larger_and_its_recipe_draws_it_again(draw: Draw, engine: Engine) -> None:
    made = draw(**SMALL, model="tiny-sd15", detail={"scale": 1.5, "tiling": CUT})
    assert pixels(made).shape == (96, 96, 4)
    recipe = read_recipe(made.images[0].path)
    assert recipe["request"]["detail"]["tiling"] == CUT
    again = engine.run(request_from(recipe))
    assert levels_apart(made.images[0].path, again.images[0].path) == 0


@pytest.mark.parametrize("model", ["tiny-sd15", "tiny-sdxl"])
def test_tiles_take_their_part_of_what_is_given_and_a_tile_that_is_all_changes_nothing(
    draw: Draw, folder: Path, model: str
) -> None:
    """Frames that share attention, a control picture, two stages with latents of what is given."""
    task, disc = Task.FOREGROUND_FROM_BACKGROUND, folder / "disc.png"
    fields = {**SMALL, "model": model, "task": task, "inputs": {"background": disc}}
    tiles = draw(**fields, detail={"scale": 1.5, "tiling": CUT})
    assert {image.role: (image.width, image.height) for image in tiles.images} == {
        "foreground": (96, 96),
        "blended": (96, 96),
    }
    whole = draw(**fields, detail={"scale": 1, "tiling": {"width": 64, "height": 64}})
    again = draw(**fields, detail={"scale": 1, "tiling": {"width": 256, "height": 192, "overlap": 64}})
    for one, other in zip(whole.images, again.images, strict=True):
        assert levels_apart(one.path, other.path) == 0


def test_no_network_ever_sees_more_than_a_tile(draw: Draw, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    decode = Model.decode_latents
    monkeypatch.setattr(Model, "decode_latents", lambda *given: (seen.append(given[1].shape[-1]), decode(*given))[1])
    draw(image=folder / "disc.png", strength=0, model="tiny-sdxl", detail={"scale": 1, "tiling": CUT})
    assert {*seen} == {8}
    assert len(seen) == 4


def test_a_picture_whose_shape_was_lost_is_said_to_be_doubtful(draw: Draw, folder: Path) -> None:
    lost = draw(image=folder / "disc.png", strength=0, detail={"scale": 1, "strength": 0.95, "tiling": CUT})
    assert lost.images[0].verdict == "doubtful"
    assert "its alpha changed while it was redrawn larger" in (lost.images[0].reason or "")


def test_what_a_mask_protects_stays_and_what_is_empty_is_not_redrawn(draw: Draw, folder: Path) -> None:
    mask = folder / "mask.png"
    Image.fromarray(np.repeat(np.arange(96) < 48, 96).reshape(96, 96).T).save(mask)
    fields = {"image": folder / "disc.png", "strength": 0, "model": "tiny-sd15"}
    made = pixels(draw(**fields, mask=mask, detail={"scale": 1, "tiling": CUT}))
    large = pixels(draw(**fields, mask=mask, detail={"scale": 1, "strength": 0.9, "tiling": CUT}))
    assert np.array_equal(made[:, 50:], large[:, 50:])
    assert not np.array_equal(made[:, :46], large[:, :46])


def test_progress_rises_in_every_phase_and_each_can_be_stopped(draw: Draw, folder: Path) -> None:
    fields = {"image": folder / "disc.png", "strength": 0, "model": "tiny-sd15"}
    heard: list[Any] = []
    draw(heard.append, **fields, detail={"scale": 1, "tiling": CUT})
    phases = ("encoding, tile 1", "redrawing in", "redrawing 1/", "decoding")
    assert all(any(step.message.startswith(phase) for step in heard) for phase in phases)
    assert [step.fraction for step in heard] == sorted(step.fraction for step in heard)
    for phase in phases:

        def stop(step: Any, phase: str = phase) -> None:
            if step.message.startswith(phase):
                raise Cancelled("stopped")

        with pytest.raises(Cancelled):
            draw(stop, **fields, detail={"scale": 1, "tiling": CUT})


def test_pictures_that_cannot_be_enlarged_are_refused_before_anything_waits(draw: Draw, folder: Path) -> None:
    opaque, wide = folder / "opaque.png", folder / "wide.png"
    Image.new("RGB", (64, 64)).save(opaque)
    Image.new("RGBA", (2049, 64)).save(wide)
    with pytest.raises(InvalidRequest, match="Call cut_out on it first"):
        draw(image=opaque, strength=0, detail={})
    with pytest.raises(ImageError, match="16 to 2048 a side"):
        draw(image=wide, strength=0, detail={})
