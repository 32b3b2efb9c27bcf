"""Pictures for the index: on disk, with the recipe of a prompt inside."""

import numpy as np

from layerdiffuse_mcp.api.outcome import EncodedFile, ImageResult, Outcome, PictureFacts
from layerdiffuse_mcp.images.png import png_bytes
from layerdiffuse_mcp.outputs.index import Entry, Index
from layerdiffuse_mcp.outputs.query import Query
from layerdiffuse_mcp.outputs.writer import saved
from layerdiffuse_mcp.settings import Settings

PATIENCE = 60
PIXELS = np.full((8, 8, 4), 255, np.uint8)
STAGES = [{"method": "layer_sd15_transparent_attn"}]


def encoded(prompt: str = "a red apple", count: int = 1) -> Outcome:
    """Pictures that hold the recipe of a prompt, and are not on disk yet."""
    facts = PictureFacts(role="foreground", width=8, height=8, seed=7, alpha=None)
    request = {"prompt": prompt, "seed": 7, "model": "pocket", "width": 8, "height": 8, "stages": STAGES}
    data = png_bytes(PIXELS, recipe={"format": 2, "role": "foreground", "request": request})
    files = tuple(EncodedFile(name=f"apple-{number}.png", data=data, picture=facts) for number in range(count))
    return Outcome(encoded=files, model="pocket")


def draw(settings: Settings, prompt: str = "a red apple", count: int = 1) -> tuple[ImageResult, ...]:
    """The same on disk."""
    return saved(encoded(prompt, count), settings.output).images


def rebuilt(index: Index) -> list[Entry]:
    """What is there when an index was asked and has read in what it lacked."""
    index.search(Query(), 1)
    if index.rebuilding:
        index.rebuilding.join(PATIENCE)
        assert not index.rebuilding.is_alive()
    return index.search(Query(), 100).entries
