"""Samplers, on pictures whose denoiser is known in closed form."""

import pytest
import torch

from layerdiffuse_mcp.api.choices import NOISE_SOURCES, SAMPLERS
from layerdiffuse_mcp.engine.sampling.noise import BatchNoise
from layerdiffuse_mcp.engine.sampling.samplers import FUNCTIONS, sample
from layerdiffuse_mcp.engine.sampling.schedules import plan, sigma_table
from layerdiffuse_mcp.errors import Cancelled

TABLE = sigma_table()
SHAPE = (4, 6, 10)
SPREAD = 0.7  # of the pictures that `gaussian` knows

every_sampler = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=lambda row: row.name)


def gaussian(x, sigma):
    """The best estimate when pictures are normal around 0.5, with standard deviation SPREAD."""
    return 0.5 + (x - 0.5) * SPREAD**2 / (SPREAD**2 + sigma**2)


def draw(sampler, seeds=(1, 2), steps=6, denoise=gaussian, shape=SHAPE, source="nvidia", **options):
    strength = options.pop("strength", None)
    run = plan(sampler, "Automatic", steps, TABLE, strength)
    return sample(sampler, denoise, run, BatchNoise(seeds, shape, source), **options)


@every_sampler
@pytest.mark.parametrize("source", NOISE_SOURCES)
def test_a_picture_is_the_same_alone_and_in_a_batch(sampler, source):
    batch = draw(sampler, (5, 6, 7), source=source)
    assert torch.allclose(batch[1], draw(sampler, (6,), source=source)[0], rtol=0, atol=1e-6)


@every_sampler
def test_a_picture_is_the_same_again_and_another_seed_is_another(sampler):
    assert torch.equal(draw(sampler, (5,)), draw(sampler, (5,)))
    assert not torch.allclose(draw(sampler, (5,)), draw(sampler, (6,)), atol=0.1)


# a consistency model's estimate is a picture, not the mean of those possible
@pytest.mark.parametrize("sampler", [row for row in SAMPLERS.values() if row.name != "LCM"], ids=lambda row: row.name)
def test_pictures_spread_as_they_should(sampler):
    pictures = draw(sampler, (1,), steps=30, shape=(4, 32, 32))
    assert float(pictures.mean()) == pytest.approx(0.5, abs=0.05)
    first_order = sampler.name in ("Euler", "Euler a", "DDIM")
    assert float(pictures.std()) == pytest.approx(SPREAD, rel=0.15 if first_order else 0.05)


@every_sampler
def test_what_the_denoiser_always_sees_is_what_comes_out(sampler):
    picture = torch.rand(1, *SHAPE)
    latents = draw(sampler, denoise=lambda x, sigma: picture.expand_as(x))
    # UniPC and DDIM end at the lowest level of noise rather than at none
    assert torch.allclose(latents, picture.expand_as(latents), atol=0.2 if sampler.automatic_schedule is None else 1e-4)


def test_better_solvers_come_nearer_to_the_true_picture():
    def error(name):
        sampler = SAMPLERS[name]
        run = plan(sampler, "Karras", 10, TABLE)
        noise = BatchNoise((1,), SHAPE)
        start = run.start(noise.initial())
        first, last = float(run.sigmas[0]), float(run.sigmas[-1])
        shrink = ((SPREAD**2 + last**2) / (SPREAD**2 + first**2)) ** 0.5
        truth = 0.5 + (start - 0.5) * shrink
        if sampler.automatic_schedule is None:
            truth = truth / (1 + last**2) ** 0.5
        return float((sample(sampler, gaussian, run, noise) - truth).norm() / truth.norm())

    euler = error("Euler")
    assert euler < 0.3
    for better in ("Heun", "DPM2", "DPM++ 2M", "UniPC", "LMS"):
        assert error(better) < euler / 2, better


@every_sampler
def test_every_step_is_reported_once_with_the_new_picture(sampler):
    steps = []
    latents = draw(sampler, on_step=lambda step, total, x, denoised: steps.append((step, total, x, denoised)))
    total = steps[0][1]
    assert [(step, of) for step, of, _, _ in steps] == [(step, total) for step in range(total)]
    assert all(x.shape == denoised.shape == (2, *SHAPE) for _, _, x, denoised in steps)
    if sampler.name != "DDIM":  # whose result is rescaled
        assert torch.equal(steps[-1][2], latents)


@every_sampler
def test_an_on_step_that_raises_stops_the_run_there(sampler):
    asked = []

    def denoise(x, sigma):
        asked.append(float(sigma))
        return gaussian(x, sigma)

    def cancel(step, total, x, denoised):
        if step == 2:
            raise Cancelled("stopped on request")

    with pytest.raises(Cancelled):
        draw(sampler, denoise=denoise, on_step=cancel)
    assert len(asked) <= 2 * 3 + 1


@every_sampler
def test_a_row_tells_the_network_passes_and_the_noise_of_a_step(sampler):
    asked, drawn = [], []

    def denoise(x, sigma):
        asked.append(float(sigma))
        return gaussian(x, sigma)

    def noise(sigma, sigma_next):
        drawn.append((float(sigma), float(sigma_next)))
        return torch.zeros(2, *SHAPE)

    run = plan(sampler, "Automatic", 10, TABLE)
    FUNCTIONS[sampler.function](denoise, torch.zeros(2, *SHAPE), run.sigmas, noise, lambda *_: None)
    passes = 2 * run.steps - 1 if sampler.second_order else run.steps
    assert len(asked) == passes
    assert bool(drawn) == (sampler.noise != "none")
    assert min(asked) >= run.lowest * 0.999


@every_sampler
def test_less_strength_keeps_more_of_the_picture(sampler):
    latent = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(0))

    def change(strength):
        return float((draw(sampler, (1,), 10, latent=latent, strength=strength) - latent).norm() / latent.norm())

    # UniPC and DDIM start from more noise than they say, as in the reference, and LCM takes the estimate as it is
    if sampler.name not in ("UniPC", "DDIM", "LCM"):
        assert change(0.0) < 0.1
    assert change(0.0) < change(0.5) < change(1.0) + 0.1


@every_sampler
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_few_steps_are_enough_to_run(sampler, steps):
    assert bool(draw(sampler, steps=steps).isfinite().all())
    assert bool(draw(sampler, steps=steps, latent=torch.zeros(1, *SHAPE), strength=0.3).isfinite().all())


@every_sampler
def test_a_zero_snr_base_is_sampled_as_well(sampler):
    table = sigma_table(zero_snr=True)
    run = plan(sampler, "SGM Uniform", 10, table)
    latents = sample(sampler, gaussian, run, BatchNoise((1, 2), SHAPE))
    assert float(latents.abs().max()) < 10
