"""A user's own layer file: trained on their pictures and base, it has the released format, and the engine runs it."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from layerdiffuse_mcp.api.requests import GenerateRequest
from layerdiffuse_mcp.engine.layers.attention_sharing_file import SharingModel
from layerdiffuse_mcp.engine.layers.weight_offset import read_offsets
from layerdiffuse_mcp.engine.weights.reader import read_checkpoint
from layerdiffuse_mcp.families.registry import FAMILIES, METHODS
from layerdiffuse_mcp.hub.catalog import pocket_folder
from layerdiffuse_mcp.hub.headers import read_header
from layerdiffuse_mcp.settings import Settings
from tests.narrow import write_models
from tests.saving import Engine
from training import own

SD15, SDXL = ([name for name, method in METHODS.items() if method.family == family] for family in ("sd15", "sdxl"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A narrow SDXL base with all files of the family."""
    folder = tmp_path_factory.mktemp("models")
    write_models(folder, ("sdxl",))
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A cut-out and a background, neither of them square."""
    for name, mode, size, colour in (
        ("cutouts/red_ball_2.png", "RGBA", (40, 56), (255, 0, 0, 128)),
        ("backgrounds/wall.jpg", "RGB", (90, 70), (90, 90, 90)),
    ):
        path = tmp_path / name
        path.parent.mkdir()
        Image.new(mode, size, colour).save(path)
    return tmp_path


def base_of(method: str, models: Path) -> Path:
    return models / "tiny-sdxl.safetensors" if method in SDXL else pocket_folder() / "pocket.safetensors"


def trained(folder: Path, method: str, models: Path, *more: str, steps: int = 1) -> Path:
    out = folder / METHODS[method].file
    base = base_of(method, models)
    given = {
        "--method": method, "--base": base, "--out": out,
        "--encoder": base.parent / FAMILIES[METHODS[method].family].codec.encoder,
        "--cutouts": folder / "cutouts", "--backgrounds": folder / "backgrounds", "--work": folder / "work",
        "--size": 64, "--rank": 4, "--control-width": 16, "--batch": 1, "--steps": steps,
    }  # fmt: skip
    own.main([*(str(part) for pair in given.items() for part in pair), *more])
    return out


@pytest.mark.parametrize("method", SD15)
def test_an_sd15_file_is_one_of_its_kind_and_fits_its_base(pictures: Path, models: Path, method: str):
    out = trained(pictures, method, models)
    model = SharingModel.read(out, read_checkpoint(base_of(method, models)).unet())
    assert (model.frames, model.has_control) == (METHODS[method].frames, bool(METHODS[method].inputs))
    released = read_header(pocket_folder() / METHODS[method].file).shapes
    assert read_header(out).shapes.keys() == released.keys()
    assert any(change.up.weight.abs().max() > 0 for change in model.layers[0].to_q_lora)  # it has learnt something


@pytest.mark.parametrize("method", SDXL)
def test_an_sdxl_file_fits_its_base_and_has_learnt_something(pictures: Path, models: Path, method: str):
    out = trained(pictures, method, models, steps=3)
    patch = read_offsets(out, read_checkpoint(base_of(method, models)).unet())
    grown = [offset.difference if hasattr(offset, "difference") else offset.up for (offset,) in patch.offsets.values()]
    assert sum(tensor.abs().max() > 0 for tensor in grown) > 0.9 * len(grown)
    conv_in = patch.offsets.get("conv_in.weight")
    if METHODS[method].inputs:
        assert conv_in[0].difference.shape[1] == 4 + 4 * len(METHODS[method].inputs)


@pytest.mark.parametrize("method", ["layer_xl_transparent_attn", "layer_xl_fg2ble"])
def test_the_engine_draws_with_the_file(pictures: Path, models: Path, method: str):
    mine = pictures / "models"
    mine.mkdir()
    for file in models.iterdir():
        if file.name != METHODS[method].file:
            (mine / file.name).symlink_to(file)
    trained(pictures, method, models).rename(mine / METHODS[method].file)
    engine = Engine(Settings(output_dir=pictures / "out", read_dirs=(pictures,), models_dir=mine, device="cpu"))
    given = {"task": (METHODS[method].inputs and "blended_from_foreground") or "transparent", "steps": 2, "width": 64}
    inputs = {role: pictures / "cutouts" / "red_ball_2.png" for role in METHODS[method].inputs}
    request = GenerateRequest.model_validate(
        {"model": "tiny-sdxl", "prompt": "x", "height": 64, "inputs": inputs} | given
    )
    assert engine.run(request, lambda _: None).images[0].path.exists()
    engine.close()


@pytest.mark.parametrize("method", ["layer_sd15_transparent_attn", "layer_xl_transparent_attn", "layer_xl_fg2ble"])
def test_a_file_is_trained_on_and_training_resumes(pictures: Path, models: Path, method: str):
    first = trained(pictures, method, models)
    kept = load_file(first)
    again = trained(pictures, method, models, "--start", str(first), "--work", str(pictures / "other"), "--rate", "0")
    assert all(torch.equal(tensor, kept[key]) for key, tensor in load_file(again).items())
    checkpoint = pictures / "work" / f"{method}.pt"
    assert torch.load(checkpoint, weights_only=False)["step"] == 1
    trained(pictures, method, models, steps=3)
    assert torch.load(checkpoint, weights_only=False)["step"] == 3


def test_what_is_to_be_seen_is_read_from_the_text_or_the_name(pictures: Path):
    folder = pictures / "cutouts"
    Image.new("RGBA", (8, 8)).save(folder / "other.png")
    (folder / "other.txt").write_text("a blue glass\n")
    assert [picture.text for picture in own.captioned(folder)] == ["a blue glass", "red ball"]


@pytest.mark.parametrize("shape", [(40, 56), (500, 20), (3, 3)])
def test_a_cut_out_is_placed_whole_and_a_background_covers_everything(shape: tuple[int, int]):
    rng = np.random.default_rng(0)
    full = np.full((*shape, 4), 255, np.uint8)
    alpha = own.placed(full, 64, rng)[..., 3]
    rows, columns = np.nonzero(alpha.any(1))[0], np.nonzero(alpha.any(0))[0]
    assert 64 * own.SMALLEST - 1 <= max(np.ptp(rows), np.ptp(columns)) + 1 <= 64
    assert own.covering(full, 64, rng).min() == 255


@pytest.mark.parametrize(
    ("method", "more", "message"),
    [
        ("layer_sd15_joint", ("--cutouts", "empty"), "no pictures"),
        ("layer_sd15_joint", ("--size", "100"), "multiple of 64"),
        ("layer_sd15_joint", ("--method", "layer_xl_fg2ble"), "no SDXL base"),
    ],
)
def test_what_cannot_be_trained_on_is_named(
    pictures: Path, models: Path, method: str, more: tuple[str, str], message: str, monkeypatch: pytest.MonkeyPatch
):
    (pictures / "empty").mkdir()
    monkeypatch.chdir(pictures)
    with pytest.raises(SystemExit, match=message):
        trained(pictures, method, models, *more)


def test_its_help_offers_the_methods_that_it_can_train(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        own.main(["--help"])
    offered = re.search(r"--method \{(.+?)\}", capsys.readouterr().out)
    assert offered is not None
    assert sorted(offered[1].split(",")) == sorted(SD15 + SDXL)
    assert len(SD15 + SDXL) == 10  # as its README says
