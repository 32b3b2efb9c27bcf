"""Prompts that change while a picture is drawn, and several at once: the latents equal those of a hand-made loop."""

from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor

from layerdiffuse_mcp.api.choices import SAMPLERS
from layerdiffuse_mcp.api.plan import DrawPlan
from layerdiffuse_mcp.api.requests import GenerateRequest
from layerdiffuse_mcp.engine.layers.adapters import ADAPTERS
from layerdiffuse_mcp.engine.models.networks import Networks
from layerdiffuse_mcp.engine.models.stable_diffusion import StableDiffusion
from layerdiffuse_mcp.engine.pipeline import prompts
from layerdiffuse_mcp.engine.pipeline.batch import results_of, tiles_of
from layerdiffuse_mcp.engine.pipeline.denoise import denoise
from layerdiffuse_mcp.engine.pipeline.latents import prepare
from layerdiffuse_mcp.engine.sampling.denoiser import Denoiser
from layerdiffuse_mcp.engine.sampling.samplers import sample
from layerdiffuse_mcp.engine.types import Conditioning
from layerdiffuse_mcp.families.registry import METHODS
from layerdiffuse_mcp.families.spec import Task
from layerdiffuse_mcp.hub import catalog
from tests.saving import Engine
from tests.tasks import plan_of

FOUR = {"steps": 4, "sampler": "Euler", "guidance_scale": 5.0, "seed": 3, "width": 128, "height": 128}
PIXELS = 128 * 128


@pytest.fixture
def base(engine: Engine) -> Callable[[str], StableDiffusion]:
    def get(family: str) -> Any:
        return engine._manager.get(catalog.find(f"tiny-{family}", engine._settings), lambda _: None)

    return get


def plan(prompt: str, family: str, **fields: Any) -> DrawPlan:
    return plan_of(GenerateRequest(prompt=prompt, negative_prompt="dull", **FOUR | fields), family)


def drawn(model: StableDiffusion, *plans: DrawPlan) -> Tensor:
    """The latents of plans' one stage, as a batch."""
    [stage] = plans[0].stages
    method, tiles = METHODS[stage.method], tiles_of(plans[0], model.latent)
    texts = prompts.joined([prompts.encode(plan, stage, model) for plan in plans], method.frames)
    start = prepare(stage, method, model, results_of(plans), None)
    return denoise(
        stage, method, model, texts, None, start, tiles, tiles.boxes, PIXELS, lambda *_: None, lambda *_: None
    )


Answer = Callable[[Callable[[str], Tensor], int], Tensor]
"""`answer(estimate, call)`: what the denoiser is to say; `estimate(text)` is what it says of one text alone."""


def by_hand(
    model: StableDiffusion, plan: DrawPlan, answer: Answer, own: Callable[[str], tuple[str | None, ...]]
) -> Tensor:
    """The same by a loop that asks for each text on its own; `own(text)` are the texts of frames beside it."""
    [stage] = plan.stages
    method, calls = METHODS[stage.method], count()
    start = prepare(stage, method, model, results_of([plan]), None)

    def encoded(text: str) -> Conditioning:
        return model.encode_prompt(
            text, negative=text == "dull", clip_skip=None, emphasis=plan.emphasis, width=128, height=128
        )

    def conditioning(text: str) -> Conditioning:
        whole = encoded(text)
        frames = tuple(frame and encoded(frame).context for frame in own(text)) if text != "dull" else ()
        return Conditioning(whole.context, whole.vector, frames=frames)

    unet = model.network()
    with ADAPTERS[method.adapter].applied(model, Networks.of(unet), method, 1.0) as on, torch.inference_mode():

        def asked(x: Tensor, sigma: Tensor) -> Tensor:
            def estimate(text: str) -> Tensor:
                half = conditioning(text)
                if text == "dull":  # its rows are those of the unconditional pass
                    alone = Denoiser(on.layered, model.sigmas, half, half, 0.0, prediction=model.prediction)
                else:
                    alone = Denoiser(on.layered, model.sigmas, half, half, 1.0, prediction=model.prediction)
                return alone(x, sigma)

            return answer(estimate, next(calls))

        return sample(SAMPLERS[stage.sampler], asked, start.levels, start.noise)


def apart(one: Tensor, other: Tensor) -> float:
    """The largest difference."""
    return float((one - other).abs().max())


def guided(estimate: Callable[[str], Tensor], **weights: float) -> Tensor:
    below = estimate("dull")
    return below + sum(5.0 * weight * (estimate(text.replace("_", " ")) - below) for text, weight in weights.items())


CASES: dict[str, tuple[str, dict[str, Any], Answer]] = {
    "a change by share": (
        "a [cat:dog:0.25]", {}, lambda estimate, call: guided(estimate, **{"a_cat" if call <= 1 else "a_dog": 1}),
    ),
    "a change counted in calls": (
        "a [cat:dog:1]", {}, lambda estimate, call: guided(estimate, **{"a_cat" if call <= 1 else "a_dog": 1}),
    ),
    "in turn": (
        "a [cat|dog]", {}, lambda estimate, call: guided(estimate, **{"a_dog" if call == 2 else "a_cat": 1}),
    ),
    "two calls a step": (
        "a [cat:dog:0.25]", {"sampler": "Heun"},
        lambda estimate, call: guided(estimate, **{"a_cat" if call <= 2 else "a_dog": 1}),
    ),
    "two at once": (
        "a cat AND a dog:0.5", {}, lambda estimate, call: guided(estimate, a_cat=1, **{"_a_dog": 0.5}),
    ),
    "one away from": (
        "a cat:0.8 AND a [dog:cow:0.25]:-0.3", {},
        lambda estimate, call: guided(estimate, a_cat=0.8, **{"_a_dog" if call <= 1 else "_a_cow": -0.3}),
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
@pytest.mark.parametrize("case", CASES)
def test_a_picture_is_drawn_as_by_hand(base: Callable[[str], StableDiffusion], case: str, family: str):
    prompt, fields, answer = CASES[case]
    model, asked = base(family), plan(prompt, family, **fields)
    ours = drawn(model, asked)
    off = apart(ours, by_hand(model, asked, answer, lambda _: ()))
    assert 3 * off < apart(ours, drawn(model, plan("a cat", family, **fields)))


def test_layers_drawn_together_change_with_the_prompt_and_with_their_own(base: Callable[[str], StableDiffusion]):
    fields = {"task": Task.LAYERS, "width": 64, "height": 64}
    own, same = {"background": "a [meadow:beach:1]"}, {"background": "a meadow"}
    prompt = "a [cat:dog:1] AND a hat:0.5"
    asked = plan(prompt, "sd15", layer_prompts=own, **fields)
    model = base("sd15")
    place = ["a meadow"]

    def answer(estimate: Callable[[str], Tensor], call: int) -> Tensor:
        place[0] = "a meadow" if call <= 1 else "a beach"
        return guided(estimate, **{"a_cat" if call <= 1 else "a_dog": 1, "_a_hat": 0.5})

    ours = drawn(model, asked)
    off = apart(ours, by_hand(model, asked, answer, lambda text: (None, f"{place[0]}, {text}", None)))
    others = ("a cat AND a hat:0.5", own), (prompt, same)
    for other in (plan(text, "sd15", layer_prompts=layers, **fields) for text, layers in others):
        assert 3 * off < apart(ours, drawn(model, other))


def test_the_negative_prompt_changes_too(base: Callable[[str], StableDiffusion]):
    model = base("sd15")
    red, blue, both = (
        drawn(model, plan("a cat", "sd15").model_copy(update={"negative_prompt": text}))
        for text in ("red", "blue", "[red:blue:0.25]")
    )
    assert min(apart(both, red), apart(both, blue)) > 1e-3


def test_results_whose_prompts_change_otherwise_are_not_one_batch(base: Callable[[str], StableDiffusion]):
    model = base("sd15")
    shapes = [
        prompts.shape(plan(prompt, "sd15"), model)
        for prompt in ("a cat", "a dog", "a [cat:dog:0.5]", "a [cat:dog:0.25]", "a cat AND a dog", "a cat AND a dog:2")
    ]
    assert shapes[0] == shapes[1]
    assert len(set(shapes)) == 5


def test_a_prompt_changes_alike_alone_and_in_a_batch(base: Callable[[str], StableDiffusion]):
    model = base("sdxl")
    plans = [plan(prompt, "sdxl") for prompt in ("a [cat:dog:0.25] AND a hat", "a [cow:hen:0.25] AND a hat")]
    both = drawn(model, *plans)
    alone = [drawn(model, one) for one in plans]
    assert 10 * apart(both, torch.cat(alone)) < apart(*alone)


def test_frames_keep_their_own_text_where_the_common_one_is_that_of_others_of_the_batch(
    base: Callable[[str], StableDiffusion],
):
    """A bar in the text of a frame makes all of it literal, so that it does not change with the prompt."""
    fields = {"task": Task.LAYERS, "layer_prompts": {"background": "left | right"}, "width": 64, "height": 64}
    model = base("sd15")
    plans = [plan(f"[cat:{later}:0.5]", "sd15", **fields) for later in ("dog", "hat")]
    both = drawn(model, *plans)
    alone = [drawn(model, one) for one in plans]
    assert 10 * apart(both, torch.cat(alone)) < apart(*alone)
