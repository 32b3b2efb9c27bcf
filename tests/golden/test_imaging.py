"""What is done to pictures before a network sees them equals the reference."""

import pytest
import torch

from layerdiffuse_mcp.images.alpha import on_grey, padded_rgb
from layerdiffuse_mcp.images.resize import resized

pytestmark = pytest.mark.golden_file("imaging")


def test_prepared_pictures_equal_the_reference(golden, key):
    pictures = {name: tensor.numpy() for name, tensor in golden.file("imaging").items() if name.startswith("rgba/")}
    match key.split("/"):
        case ["rgba", _]:
            pytest.skip("a picture to begin with, not a result")
        case ["padded_rgb", name]:
            ours = padded_rgb(pictures[f"rgba/{name}"])
        case ["on_grey", name]:
            ours = on_grey(pictures[f"rgba/{name}"])
        case ["resized", mode, name, size]:
            height, width = map(int, size.split("x"))
            ours = resized(on_grey(pictures[f"rgba/{name}"]), height, width, mode)
        case _:
            pytest.fail(f"no case for {key}")
    golden.check("imaging", key, torch.from_numpy(ours))
