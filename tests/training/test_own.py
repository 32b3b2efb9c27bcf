"""A user's own layer file: trained on their pictures and base, it has the released format, and the engine runs it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from layerdiffuse_mcp.engine.checkpoints import read_checkpoint
from layerdiffuse_mcp.engine.sharing_model import SharingModel
from layerdiffuse_mcp.hub.catalog import pocket_folder
from layerdiffuse_mcp.hub.headers import read_header
from layerdiffuse_mcp.methods import METHODS
from training import own

POCKET = pocket_folder()
SD15 = [name for name, method in METHODS.items() if method.family == "sd15"]


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


def trained(folder: Path, method: str, *more: str) -> Path:
    out = folder / "mine.safetensors"
    encoder = POCKET / "layer_sd15_vae_transparent_encoder.safetensors"
    given = {
        "--method": method, "--base": POCKET / "pocket.safetensors", "--encoder": encoder, "--out": out,
        "--cutouts": folder / "cutouts", "--backgrounds": folder / "backgrounds", "--work": folder / "work",
        "--size": 64, "--rank": 4, "--control-width": 16, "--batch": 1, "--minutes": 0.005,
    }  # fmt: skip
    own.main([*(str(part) for pair in given.items() for part in pair), *more])
    return out


@pytest.mark.parametrize("method", SD15)
def test_the_file_is_one_of_its_kind_and_fits_its_base(pictures: Path, method: str):
    out = trained(pictures, method)
    model = SharingModel.read(out, read_checkpoint(POCKET / "pocket.safetensors").unet())
    assert (model.frames, model.has_control) == (METHODS[method].frames, bool(METHODS[method].inputs))
    released = read_header(POCKET / METHODS[method].file).shapes
    assert read_header(out).shapes.keys() == released.keys()
    assert any(change.up.weight.abs().max() > 0 for change in model.layers[0].to_q_lora)  # it has learnt something


def test_training_goes_on_from_a_file_and_where_it_was_stopped(pictures: Path, capsys: pytest.CaptureFixture[str]):
    method = "layer_sd15_transparent_attn"
    first = trained(pictures, method, "--start", str(POCKET / METHODS[method].file), "--rate", "0")
    for name, value in read_header(POCKET / METHODS[method].file).shapes.items():
        assert read_header(first).shapes[name] == value
    steps = torch.load(pictures / "work" / f"{method}.pt", weights_only=True)["step"]
    trained(pictures, method, "--start", str(first), "--minutes", "0.02")
    assert torch.load(pictures / "work" / f"{method}.pt", weights_only=True)["step"] > steps


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
    ],
)
def test_what_cannot_be_trained_on_is_named(
    pictures: Path, method: str, more: tuple[str, str], message: str, monkeypatch: pytest.MonkeyPatch
):
    (pictures / "empty").mkdir()
    monkeypatch.chdir(pictures)
    with pytest.raises(SystemExit, match=message):
        trained(pictures, method, *more)
