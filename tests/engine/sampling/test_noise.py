"""Noise is a function of the seed alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from layerdiffuse_mcp.api.choices import NOISE_SOURCES
from layerdiffuse_mcp.engine.sampling.noise import SOURCES, BatchNoise, BrownianNoise, CpuNormal, PhiloxNormal

SHAPE = (4, 6, 10)
SEEDS = st.integers(0, 2**63)
LEVELS = st.floats(0.05, 14.0)

sources = pytest.mark.parametrize("source", NOISE_SOURCES)


@sources
@settings(deadline=None, max_examples=10)
@given(seeds=st.lists(st.integers(0, 2**40), min_size=2, max_size=4))
def test_an_image_gets_the_same_noise_alone_and_in_a_batch(source, seeds):
    batch = BatchNoise(seeds, SHAPE, source)
    alone = [BatchNoise([seed], SHAPE, source) for seed in seeds]
    assert torch.equal(batch.initial(), torch.cat([one.initial() for one in alone]))
    for _ in range(2):
        assert torch.equal(batch(), torch.cat([one() for one in alone]))


@sources
def test_each_draw_differs_and_the_initial_one_stays(source):
    noise = BatchNoise([7], SHAPE, source)
    start = noise.initial()
    draws = [start, noise(), noise()]
    assert not torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[1], draws[2])
    assert torch.equal(noise.initial(), start)


@pytest.mark.parametrize("generator", [PhiloxNormal, CpuNormal])
def test_draws_are_standard_normal(generator):
    drawn = generator(99).draw((200, 500))
    assert drawn.dtype == torch.float32
    assert abs(float(drawn.mean())) < 0.01
    assert abs(float(drawn.std()) - 1) < 0.01
    assert abs(float((drawn**4).mean()) - 3) < 0.1


@settings(deadline=None)
@given(seed=SEEDS)
def test_all_64_bits_of_a_seed_count(seed):
    drawn = PhiloxNormal(seed).draw((16,))
    assert not torch.equal(drawn, PhiloxNormal(seed ^ 1 << 40).draw((16,)))
    assert torch.equal(drawn, PhiloxNormal(seed + 2**64).draw((16,)))


def test_the_cpu_source_is_torchs_own():
    assert torch.equal(
        BatchNoise([3], SHAPE, "cpu").initial()[0], torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))
    )


def test_noise_comes_in_the_dtype_asked_for():
    noise = BatchNoise([1, 2], SHAPE, dtype=torch.float16)
    assert {noise.initial().dtype, noise().dtype, noise.brownian(0.03, 14.6)(*torch.tensor([2.0, 1.0])).dtype} == {
        torch.float16
    }


@sources
@settings(deadline=None, max_examples=6)
@given(levels=st.lists(LEVELS, min_size=3, max_size=3, unique_by=lambda level: round(level, 3)))
def test_brownian_increments_add_up(source, levels):
    high, middle, low = torch.tensor(sorted(levels, reverse=True))
    tree = BrownianNoise([5, 6], SHAPE, 0.03, 14.6, source)

    def increment(start, end):
        return tree(start, end) * (start - end).sqrt()

    assert torch.allclose(increment(high, low), increment(high, middle) + increment(middle, low), atol=1e-5)


@sources
def test_brownian_noise_does_not_depend_on_the_batch_or_on_what_was_asked_before(source):
    asked = [torch.tensor(pair) for pair in ((14.0, 9.0), (9.0, 2.5), (2.5, 0.1))]
    tree = BrownianNoise([5, 6], SHAPE, 0.03, 14.6, source)
    forward = [tree(*pair) for pair in asked]
    alone = BrownianNoise([6], SHAPE, 0.03, 14.6, source)
    for pair, gold in reversed(list(zip(asked, forward, strict=True))):
        assert torch.equal(alone(*pair)[0], gold[1])


def test_trees_of_a_batch_draw_no_more_than_each_alone(monkeypatch):
    drawn: list[int] = []

    class Counted(CpuNormal):
        def draw(self, shape):
            drawn.append(1)
            return super().draw(shape)

    monkeypatch.setitem(SOURCES, "cpu", Counted)

    def draws(seeds):
        drawn.clear()
        tree, levels = BrownianNoise(seeds, SHAPE, 0.03, 14.6, "cpu"), torch.linspace(14.6, 0.03, 20)
        for pair in levels.unfold(0, 2, 1):
            tree(*pair)
        return len(drawn)

    assert draws([5, 6, 7]) <= sum(draws([seed]) for seed in (5, 6, 7))


def test_brownian_noise_has_unit_variance():
    tree = BrownianNoise([8], (4, 64, 64), 0.03, 14.6)
    for pair in ((14.6, 9.0), (9.0, 8.9), (0.5, 0.03)):
        assert abs(float(tree(*torch.tensor(pair)).std()) - 1) < 0.03


def test_a_level_just_outside_the_tree_is_its_end():
    tree = BrownianNoise([8], SHAPE, 0.0291672, 14.6146)
    inside, outside = torch.tensor([14.6146, 1.0]), torch.tensor([14.614602, 1.0])
    assert torch.allclose(tree(*inside), tree(*outside), atol=1e-5)


def test_a_tree_leaves_torchs_own_draws_alone():
    torch.manual_seed(4)
    before = torch.randn(3)
    torch.manual_seed(4)
    BrownianNoise([4], SHAPE, 0.03, 14.6)(*torch.tensor([3.0, 1.0]))
    assert torch.equal(torch.randn(3), before)
