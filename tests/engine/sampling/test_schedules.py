"""Noise levels: what every schedule promises, and what a run is planned from."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from layerdiffuse_mcp.api.choices import SAMPLERS, SCHEDULES
from layerdiffuse_mcp.engine.sampling.schedules import img2img_sigmas, plan, sigma_table, sigmas
from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.families.registry import FAMILIES

TABLE = sigma_table()
EULER = SAMPLERS["Euler"]
STEPS = st.integers(1, 150)


def test_the_table_is_stable_diffusions():
    assert TABLE.sigmas.dtype == torch.float32
    assert TABLE.lowest == pytest.approx(0.0291672, abs=1e-7)
    assert TABLE.highest == pytest.approx(14.6146, abs=1e-4)


def test_a_zero_snr_table_begins_alike_and_ends_in_almost_pure_noise():
    table = sigma_table(zero_snr=True)
    assert table.lowest == pytest.approx(TABLE.lowest, rel=1e-5)
    assert table.highest == pytest.approx(4518.76, abs=0.1)
    assert bool((table.sigmas.diff() > 0).all())


@given(t=st.integers(0, 999))
def test_a_timestep_is_found_by_its_sigma(t):
    assert int(TABLE.sigma_to_t(TABLE.t_to_sigma(torch.tensor(t)))) == t


@given(t=st.floats(0, 999))
def test_a_sigma_between_two_timesteps_means_the_nearer_one(t):
    assert abs(int(TABLE.sigma_to_t(TABLE.t_to_sigma(torch.tensor(t)))) - t) <= 0.501


def test_the_stopping_sigma_falls_from_everything_to_nothing():
    levels = [TABLE.percent_to_sigma(done / 10) for done in range(11)]
    assert levels == sorted(levels, reverse=True)
    assert levels[0] == math.inf
    assert levels[-1] == 0.0


@given(schedule=st.sampled_from(sorted(SCHEDULES)), steps=STEPS)
def test_levels_fall_from_the_highest_to_zero_in_as_many_steps_as_asked(schedule, steps):
    levels = sigmas(schedule, steps, TABLE, EULER)
    assert levels.dtype == torch.float32
    assert bool((levels.diff() < 0).all())
    if schedule == "DDIM":  # starts a little lower, and may make more steps
        assert len(levels) >= steps + 1
    else:
        assert len(levels) == steps + 1
        assert float(levels[0]) == pytest.approx(TABLE.highest, rel=1e-4)
    assert float(levels[-1]) == pytest.approx(TABLE.lowest if schedule == "KL Optimal" else 0.0, rel=1e-4)


@given(schedule=st.sampled_from(sorted({*SCHEDULES} - {"Simple"})), steps=STEPS)
def test_zero_snr_levels_fall_as_well(schedule, steps):
    assert bool((sigmas(schedule, steps, sigma_table(zero_snr=True), EULER).diff() < 0).all())


@pytest.mark.parametrize("sdxl", [False, True])
def test_align_your_steps_has_the_published_levels_of_each_family(sdxl):
    levels = sigmas(
        "Align Your Steps", 11, sigma_table(steps_table=FAMILIES["sdxl" if sdxl else "sd15"].steps_table), EULER
    )
    published = (0.555, 0.380, 0.234, 0.113, 0.029, 0) if sdxl else (0.963, 0.652, 0.399, 0.152, 0.029, 0)
    assert levels[6:].tolist() == pytest.approx(published)


def test_kl_optimal_is_even_in_the_angle():
    angles = sigmas("KL Optimal", 10, TABLE, EULER).arctan()
    assert torch.allclose(angles.diff(), angles.diff()[0], atol=1e-5)


def test_beta_crowds_both_ends():
    gaps = sigmas("Beta", 21, TABLE, EULER)[:-1].diff().abs()
    assert float(gaps[0]) < float(gaps[10])
    assert float(gaps[-1]) < float(gaps[10])


def test_ddim_and_simple_levels_are_the_tables_own():
    known = set(TABLE.sigmas.tolist())
    for schedule in ("DDIM", "Simple"):
        assert set(sigmas(schedule, 7, TABLE, EULER)[:-1].tolist()) <= known


@given(t=st.integers(0, 49))
def test_every_twentieth_timestep_is_found_by_its_sigma(t):
    table, timestep = TABLE.every(20), torch.tensor(20 * t + 19)
    assert int(table.sigma_to_t(table.t_to_sigma(timestep))) == timestep
    assert float(table.t_to_sigma(timestep)) == pytest.approx(float(TABLE.t_to_sigma(timestep)), rel=1e-6)


def test_a_table_of_every_twentieth_timestep_has_fifty_levels_up_to_the_last():
    table = TABLE.every(20)
    assert (len(table.sigmas), table.first, table.last) == (50, 19, 999)
    assert table.highest == TABLE.highest
    assert float(table.t_to_sigma(torch.tensor(0))) == pytest.approx(table.lowest)
    between = table.t_to_sigma(torch.tensor(29.0)).log()
    assert float(between) == pytest.approx(float(table.log_sigmas[:2].mean()), rel=1e-6)


@pytest.mark.parametrize("schedule", sorted({*SCHEDULES} - {"Align Your Steps"}))
def test_every_schedule_stays_within_the_timesteps_that_lcm_knows(schedule):
    levels = sigmas(schedule, 4, TABLE, SAMPLERS["LCM"])
    lowest, highest = (float(TABLE.t_to_sigma(torch.tensor(t))) for t in (19, 999))
    assert float(levels[levels > 0].min()) >= lowest * 0.9999
    assert float(levels.max()) <= highest * 1.0001


def test_lcm_stops_and_asks_by_the_whole_table():
    run = plan(SAMPLERS["LCM"], "Automatic", 4, TABLE)
    assert TABLE.sigma_to_t(run.sigmas[:-1]).tolist() == pytest.approx([999, 672, 346, 19], abs=1)


@pytest.mark.parametrize("sampler", [row for row in SAMPLERS.values() if row.automatic_schedule])
def test_automatic_is_the_samplers_own_schedule(sampler):
    automatic, own = (sigmas(name, 9, TABLE, sampler) for name in ("Automatic", sampler.automatic_schedule))
    assert torch.equal(automatic, own)


def test_a_sampler_that_discards_asks_one_more_and_drops_the_last_but_one():
    longer = sigmas("Karras", 9, TABLE, EULER)
    assert torch.equal(sigmas("Karras", 8, TABLE, SAMPLERS["DPM2"]), torch.cat([longer[:-2], longer[-1:]]))


@given(steps=STEPS, strength=st.floats(0, 1))
def test_img2img_goes_through_the_end_of_the_levels(steps, strength):
    full = sigmas("Karras", steps, TABLE, EULER)
    tail = img2img_sigmas(full, steps, strength)
    assert len(tail) - 1 == int(min(strength, 0.999) * steps) + 1
    assert torch.equal(tail, full[-len(tail) :])


@pytest.mark.parametrize(("steps", "made"), [(20, 20), (30, 31), (1, 1), (2, 2)])
def test_unipc_makes_as_many_steps_as_its_stride_gives(steps, made):
    assert plan(SAMPLERS["UniPC"], "Karras", steps, TABLE).steps == made


@given(sampler=st.sampled_from(sorted(SAMPLERS)), steps=STEPS, strength=st.none() | st.floats(0, 1))
def test_every_plan_steps_down_from_where_it_starts(sampler, steps, strength):
    run = plan(SAMPLERS[sampler], "Automatic", steps, TABLE, strength)
    assert run.steps >= 1
    assert bool((run.sigmas.diff() < 0).all())
    assert run.noise_scale > 0
    assert (run.latent_scale == 0) == (strength is None)
    assert 0 < run.lowest <= run.highest < TABLE.highest * 1.001


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
def test_however_many_steps_are_asked_for_img2img_makes_one_or_more_downwards(sampler, schedule):
    """Where a schedule has more steps than its table has levels, "Simple" repeats some, as in the reference."""
    for steps, strength in itertools.product((1, 2, 3, 50, 60, 150), (0.02, 0.1, 0.5, 1)):
        run = plan(SAMPLERS[sampler], schedule, steps, TABLE, strength)
        few = schedule == "Simple" and steps > len(TABLE.sigmas) // SAMPLERS[sampler].timestep_stride
        assert run.steps >= 1
        assert bool(run.sigmas.isfinite().all())
        assert bool((run.sigmas.diff() < (1e-9 if few else 0)).all())


def test_half_of_a_run_that_has_fewer_levels_than_steps_is_half_of_its_levels():
    whole, half = (plan(SAMPLERS["LCM"], "DDIM", 150, TABLE, strength) for strength in (1, 0.5))
    assert whole.steps == 49
    assert half.steps == 25


def test_a_start_has_noise_of_the_first_level_around_the_latent():
    noise, latent = torch.randn(2, 4, 8, 8), torch.randn(1, 4, 8, 8)
    run = plan(EULER, "Karras", 10, TABLE, 0.5)
    assert torch.equal(run.start(noise, latent), latent + noise * run.sigmas[0])
    run = plan(EULER, "Karras", 10, TABLE)
    assert torch.equal(run.start(noise), noise * run.sigmas[0])


def test_a_latent_needs_a_strength_and_a_strength_a_latent():
    noise = torch.zeros(1, 4, 8, 8)
    with pytest.raises(ValueError, match="go together"):
        plan(EULER, "Karras", 10, TABLE).start(noise, noise)
    with pytest.raises(ValueError, match="go together"):
        plan(EULER, "Karras", 10, TABLE, 0.5).start(noise)


@pytest.mark.parametrize("sampler", ["Euler", "UniPC", "DDIM"])
def test_impossible_runs_are_refused_with_what_is_possible(sampler):
    row = SAMPLERS[sampler]
    with pytest.raises(InvalidRequest, match="at least 1"):
        plan(row, "Karras", 0, TABLE)
    with pytest.raises(InvalidRequest, match="between 0"):
        plan(row, "Karras", 5, TABLE, 1.5)


def test_an_unknown_schedule_is_refused_with_the_known_ones():
    with pytest.raises(InvalidRequest, match="Exponential"):
        sigmas("Linear", 5, TABLE, EULER)
