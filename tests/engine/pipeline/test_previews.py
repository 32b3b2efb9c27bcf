"""Small pictures of what is being drawn: there while it is drawn, gone afterwards, and of no effect on the result."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from layerdiffuse_mcp.api.outcome import Outcome, Progress
from layerdiffuse_mcp.api.requests import GenerateRequest
from layerdiffuse_mcp.engine.pipeline.previews import latent_pictures, sheet
from layerdiffuse_mcp.errors import Cancelled, LayerDiffuseError
from layerdiffuse_mcp.families.registry import FAMILIES
from layerdiffuse_mcp.families.spec import Task
from layerdiffuse_mcp.settings import Settings
from tests.narrow import write_models
from tests.saving import Engine, same_pixels


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("previews")
    write_models(folder)
    return folder


@pytest.fixture
def draw(models: Path, tmp_path: Path) -> Callable[..., tuple[Outcome, list[tuple[Path, Image.Image]]]]:
    """Draws with previews; what came of it, and each preview as it was when it was told of."""

    def run(
        stop: Exception | None = None, previews: bool = True, **fields: object
    ) -> tuple[Outcome, list[tuple[Path, Image.Image]]]:
        settings = Settings(output_dir=tmp_path / "out", models_dir=models, device="cpu", previews=previews)
        seen: list[tuple[Path, Image.Image]] = []

        def on_step(step: Progress) -> None:
            if ", preview " in step.message:
                path = Path(step.message.partition(", preview ")[2])
                with Image.open(path) as picture:
                    picture.load()
                seen.append((path, picture))
                if stop is not None:
                    raise stop

        given = {"model": "tiny-sd15", "prompt": "a red apple", "steps": 3, "seed": 5} | fields
        return Engine(settings).run(GenerateRequest(**given), on_step), seen

    return run


def hidden(folder: Path) -> list[Path]:
    return list(folder.rglob(".*"))


def test_a_preview_lies_in_the_output_folder_while_it_is_drawn_and_is_gone_afterwards(draw, tmp_path) -> None:
    _, seen = draw()
    assert len(seen) == 3
    path, picture = seen[-1]
    assert path.is_absolute()
    assert path.parent == tmp_path / "out"
    assert (picture.format, picture.size) == ("PNG", (64, 64))
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("error", [Cancelled("stopped"), LayerDiffuseError("broken")], ids=["cancelled", "failed"])
def test_no_preview_stays_when_the_run_is(draw, tmp_path, error) -> None:
    with pytest.raises(type(error)):
        draw(stop=error)
    assert list((tmp_path / "out").rglob("*")) == []


def test_there_are_none_unless_asked_for_and_the_pictures_are_the_same(draw) -> None:
    plain, none = draw(previews=False)
    shown, some = draw()
    assert (none, bool(some)) == ([], True)
    assert same_pixels(plain.images[0].path, shown.images[0].path)


def test_frames_stand_side_by_side(draw) -> None:
    _, seen = draw(task=Task.LAYERS, count=2)
    assert seen[0][1].size == (3 * 64, 2 * 64)


def test_a_folder_that_cannot_be_written_to_is_left_to_the_picture_to_report(draw, tmp_path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(LayerDiffuseError, match="cannot be written"):
        draw()


def test_a_sheet_is_never_larger_than_512_pixels() -> None:
    for count, side in ((1, 16), (1, 128), (8, 128), (1, 256), (3, 256)):
        assert max(sheet(np.zeros((count, side, side, 3), np.uint8), 2).shape) <= 512


def test_latents_of_a_colour_look_about_like_it() -> None:
    factors = torch.tensor(FAMILIES["sdxl"].latent.rgb_factors)
    red = torch.linalg.lstsq(factors[:4].T, torch.tensor([1.0, -1.0, -1.0]) - factors[4]).solution
    picture = latent_pictures(red[None, :, None, None].expand(1, 4, 8, 8), factors)
    assert np.abs(picture.astype(int) - (255, 0, 0)).max() <= 2
