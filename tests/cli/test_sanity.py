"""The sanity checks: drawn with what is here, and what is missing is said with the command that brings it."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from layerdiffuse_mcp.cli.parser import main
from layerdiffuse_mcp.images.contact import contact_sheet
from layerdiffuse_mcp.images.read import read_picture
from layerdiffuse_mcp.recipes.recipe import read_recipe
from layerdiffuse_mcp.recipes.sanity import texts_in

NAMED = "realisticVisionV51_v51VAE"


def text(
    prompt: str, digest: str, model: str = NAMED, method: str = "Only Generate Transparent Image (Attention Injection)"
):
    """A parameter text like the published ones, small."""
    return (
        f"{prompt}\nNegative prompt: bad, ugly\nSteps: 1, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 12345, "
        f"Size: 64x64, Model hash: {digest}, Model: {model}, layerdiffusion_enabled: True, "
        f"layerdiffusion_method: (SD1.5) {method}, layerdiffusion_weight: 1, layerdiffusion_ending_step: 1, "
        "layerdiffusion_fg_image: False, layerdiffusion_resize_mode: Crop and Resize"
    )


@pytest.fixture
def base(narrow: Path) -> Path:
    """The narrow base under a name of its own."""
    return narrow / "tiny-sd15.safetensors"


def check(tmp_path: Path, *texts: str) -> int:
    (tmp_path / "texts.txt").write_text("\n\n".join(texts))
    return main(["sanity-check", "--texts", str(tmp_path / "texts.txt")])


def test_with_nothing_prepared_it_says_so_and_what_to_run(capsys) -> None:
    assert main(["sanity-check"]) == 1
    printed = capsys.readouterr().out
    assert "nothing drawn: none of the 8 has its models on this machine" in printed
    for name in ("juggernaut-xl-v6", "realistic-vision-v51"):
        assert f"\n  layerdiffuse-mcp models prepare {name}\n" in printed
    assert "animaPencilXL_v100 (hash 7ed8da12d9)" in printed


def test_a_base_is_found_by_its_hash_and_the_rest_is_said_to_be_missing(base, capsys, tmp_path) -> None:
    digest = hashlib.sha256(base.read_bytes()).hexdigest()[:10]
    everything = text("a cup", digest, method="Generate Everything Together")
    assert check(tmp_path, text("an apple", digest), everything, text("a fox", "0123456789", "elsewhere")) == 0
    printed = capsys.readouterr()
    assert printed.out.count("foreground: ") == 2
    assert "missing: 3: a fox: the base elsewhere (hash 0123456789)" in printed.out
    assert "hash" not in printed.err
    [line] = [line for line in printed.out.splitlines() if line.startswith("contact sheet: ")]
    sheet = read_picture(Path(line.removeprefix("contact sheet: "))).rgba
    assert (sheet[..., 3] == 255).all()
    [first, *_] = [line.removeprefix("foreground: ") for line in printed.out.splitlines() if "foreground: " in line]
    recipe = read_recipe(Path(first))
    assert (recipe["request"]["seed"], recipe["request"]["width"]) == (12345, 64)


def test_a_base_of_the_right_name_and_another_content_is_drawn_with_and_said_to_be_another(
    narrow, tmp_path, capsys, monkeypatch
) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    for path in narrow.iterdir():
        name = f"{NAMED}.safetensors" if path.name.startswith("tiny") else path.name
        (folder / name).symlink_to(path)
    monkeypatch.setenv("LAYERDIFFUSE_MODELS_DIR", str(folder))
    assert check(tmp_path, text("an apple", "15012c538f")) == 0
    printed = capsys.readouterr()
    assert "foreground: " in printed.out
    assert "another file: its hash is" in " ".join(printed.err.split())
    assert "instead of 15012c538f" in " ".join(printed.err.split())


def test_the_layer_files_that_a_base_lacks_are_missing(base, tmp_path, capsys, monkeypatch) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / base.name).symlink_to(base)
    monkeypatch.setenv("LAYERDIFFUSE_MODELS_DIR", str(tmp_path / "models"))
    assert check(tmp_path, text("an apple", hashlib.sha256(base.read_bytes()).hexdigest()[:10])) == 1
    printed = capsys.readouterr().out
    assert "missing: 1: an apple: layer_sd15" in printed
    assert "  layerdiffuse-mcp models prepare tiny-sd15\n" in printed


@pytest.mark.parametrize(
    ("texts", "words"), [("\n \n", "no parameter text"), ("cat\nSteps: many, Seed: 1, CFG scale: 2", "Steps: many")]
)
def test_texts_that_cannot_be_drawn_are_explained(texts, words, tmp_path, capsys) -> None:
    assert check(tmp_path, texts) == 1
    assert words in capsys.readouterr().err


def test_texts_stand_apart_by_an_empty_line() -> None:
    assert texts_in("a\nb\r\n\r\nc\n\n\n d\n") == ("a\nb", "c", "d")


def test_a_contact_sheet_shows_each_picture_on_a_checkerboard_above_its_caption() -> None:
    red = np.zeros((40, 20, 4), np.uint8)
    red[10:30] = 255, 0, 0, 255
    data = contact_sheet([(red, "1: red"), (red[:, ::-1], "a caption " * 99), (red, "")], cell=64)
    with Image.open(io.BytesIO(data)) as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape == (2 * (64 + 54 + 12) + 12, 2 * (64 + 12) + 12, 3)
    assert pixels[12 + 32, 12 + 32].tolist() == [255, 0, 0]
    assert {tuple(tone) for tone in pixels[12:20, 12:40].reshape(-1, 3).tolist()} != {(255, 255, 255)}
    assert pixels[12 + 64 : 12 + 64 + 18, 12:76].min() < 90  # the caption's ink
    assert (pixels[:, :12] == 255).all()
