"""Drawing with models that are partly offloaded, for the tests."""

from collections.abc import Callable

import torch

from layerdiffuse_mcp.api.outcome import Outcome, Progress
from layerdiffuse_mcp.api.requests import GenerateRequest, PrepareRequest
from layerdiffuse_mcp.engine.transparency.latent_file import read_latent
from tests.saving import Engine, same_pixels


def draw(engine: Engine, on_step: Callable[[Progress], None] = lambda _: None, **fields) -> Outcome:
    shape = {"width": 64, "height": 64, "steps": 2}
    given = {"model": "tiny-sd15", "prompt": "a red apple", "seed": 5, "save_latent": True} | shape | fields
    return engine.run(GenerateRequest(**given), on_step)


def loaded(engine: Engine) -> dict[str, dict]:
    status = engine.status()
    return {model["model"]: model for model in status["loaded"]}


def prepare(engine: Engine, name: str) -> None:
    engine.run(PrepareRequest(model=name), lambda _: None)


def same(one: Outcome, other: Outcome) -> bool:
    latents = ([read_latent(path).latent for path in outcome.latents] for outcome in (one, other))
    return all(torch.equal(a, b) for a, b in zip(*latents, strict=True)) and all(
        same_pixels(a.path, b.path) for a, b in zip(one.images, other.images, strict=True)
    )
