"""What is done to pictures before a network sees them equals the reference."""

import pytest
import torch

from layerdiffuse_mcp.images.alpha import on_grey, padded_rgb
from layerdiffuse_mcp.images.resize import resized

# the file also holds the pictures that the results were made of
pytestmark = pytest.mark.golden_file("imaging", without="rgba")


def test_prepared_pictures_equal_the_reference(golden, key):
    pictures = {name: tensor.numpy() for name, tensor in golden.file("imaging").items() if name.startswith("rgba/")}
    match key.split("/"):
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
