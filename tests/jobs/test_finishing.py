"""A foreground comes onto the picture that it was drawn for where the model saw it, however sizes were fitted; whatever
else is drawn from a picture says where it lies on that.
"""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from layerdiffuse_mcp.api.choices import FITS, RESIZE_MODES
from layerdiffuse_mcp.api.finish import OntoBackground, OverGiven
from layerdiffuse_mcp.api.plan import DrawPlan
from layerdiffuse_mcp.api.requests import GenerateRequest
from layerdiffuse_mcp.families.spec import Task
from layerdiffuse_mcp.images.fitting import fitted
from layerdiffuse_mcp.images.png import png_bytes
from layerdiffuse_mcp.images.read import read_picture
from layerdiffuse_mcp.images.resize import resized
from layerdiffuse_mcp.images.sets import on_picture
from layerdiffuse_mcp.images.tasks import OnPictureTask
from layerdiffuse_mcp.jobs.planner import plan
from layerdiffuse_mcp.settings import Settings

SIZES = [None, (128, 128), (77, 131), (256, 256), (300, 158), (64, 70), (90, 400)]
"""Near the model's own and far from it, in its steps and not."""
CASES = [*product(SIZES, FITS, RESIZE_MODES[:1]), *product(SIZES[::2], ["contain", "cover"], RESIZE_MODES[1:])]
MARK = (slice(150, 190), slice(190, 225))
"""Rows and columns of a patch in the picture, which is 400 by 300."""


@pytest.mark.parametrize(("size", "fit", "resize_mode"), CASES)
def test_a_foreground_lies_on_the_given_picture_where_the_model_saw_it(
    settings: Settings, tmp_path: Path, size: tuple[int, int] | None, fit: str, resize_mode: str
):
    """A perfect model: it draws in blue what it sees in red, and nothing else."""
    photo = np.full((300, 400, 3), 255, np.uint8)
    photo[MARK] = 255, 0, 0
    Image.fromarray(photo).save(tmp_path / "photo.png")
    request = GenerateRequest(
        prompt="cat", model="pocket", task=Task.FOREGROUND_FROM_BACKGROUND,
        inputs={"background": tmp_path / "photo.png"},
        fit=fit if size else None, width=size and size[0], height=size and size[1], resize_mode=resize_mode,
    )  # fmt: skip
    planned = plan(request, settings)
    [task], finish = planned.tasks, planned.finish
    assert isinstance(task, DrawPlan)
    assert isinstance(finish, OntoBackground)
    width, height = task.drawn or (task.width, task.height)
    seen = resized(photo / np.float32(255), height + -height % 8, width + -width % 8, resize_mode)[:height, :width]
    drawn = np.zeros((height, width, 4), np.uint8)
    drawn[..., 2], drawn[..., 3] = 255, np.rint(255 * (1 - seen[..., 1]).clip(0, 1))
    result, _ = fitted(drawn, None, (width, height), (task.width, task.height), task.fit)
    made = on_picture(OnPictureTask(png_bytes(result), tmp_path / "photo.png", finish.field), lambda _: None)
    (tmp_path / "made.png").write_bytes(made.data)
    found = read_picture(tmp_path / "made.png").rgba
    assert found.shape[:2] == photo.shape[:2]
    blue = (found[..., 2].astype(int) - found[..., 0]).clip(0)
    rows, columns = (np.flatnonzero((blue > 127).any(axis)) for axis in (1, 0))
    pixel = max(400 / width, 300 / height)  # of what was drawn, on the picture
    expected = (MARK[0].start, MARK[0].stop, MARK[1].start, MARK[1].stop)
    assert (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1) == pytest.approx(expected, abs=0.6 * pixel + 1)


FROM_PICTURES: dict[str, dict[str, Any]] = {
    "image": {"image": "given.png"},
    "foreground": {"task": Task.BACKGROUND_FROM_FOREGROUND, "inputs": {"foreground": "given.png"}},
    "foreground in it": {"task": Task.BLENDED_FROM_FOREGROUND, "inputs": {"foreground": "given.png"}},
    "background": {"task": Task.BLENDED_FROM_BACKGROUND, "inputs": {"background": "given.png"}},
}


@pytest.mark.parametrize("what", FROM_PICTURES)
def test_what_is_drawn_from_a_picture_of_another_size_says_so_and_where_it_lies(
    settings: Settings, tmp_path: Path, what: str
):
    fields: dict[str, Any] = {"prompt": "a blue star", "model": "pocket", **FROM_PICTURES[what]}
    fields |= {"inputs": {name: tmp_path / file for name, file in fields.get("inputs", {}).items()}}
    fields |= {"image": tmp_path / fields["image"]} if "image" in fields else {}

    def planned(size: tuple[int, int], **more: Any) -> tuple[DrawPlan, Any]:
        Image.new("RGBA", size, (255, 0, 0, 128)).save(tmp_path / "given.png")
        made = plan(GenerateRequest(**fields, **more), settings)
        [task] = made.tasks
        assert isinstance(task, DrawPlan)
        return task, made.finish

    task, finish = planned((400, 400))
    assert isinstance(finish, OverGiven)
    assert finish.placement.model_dump() == {
        "x": 0, "y": 0, "width": 400, "height": 400, "scale": 3.125, "crop": (0, 0, 400, 400)
    }  # fmt: skip
    [said] = [note for note in task.notes if "compose_layers" in note]
    assert said.startswith("The picture" if what == "image" else f"The {what.split()[0]} picture")
    assert "has 400x400 pixels, and the result 128x128" in said
    assert "x=0, y=0, width=400, height=400" in said
    task, finish = planned((400, 400), width=120, height=120)
    assert isinstance(finish, OverGiven)
    assert not any("compose_layers" in note for note in task.notes)  # the size was asked for
    task, finish = planned((128, 128))
    assert (task.notes, finish) == ((), None)
