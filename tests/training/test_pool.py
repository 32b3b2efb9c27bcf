"""The pool of batches that training stages draw from."""

import itertools

import torch

from training.pool import Pool


def test_a_batch_is_shown_several_times_and_the_pool_stays_within_its_size() -> None:
    counter = itertools.count()
    pool = Pool(lambda size: (size, next(counter)), torch.Generator().manual_seed(0), shown=4, kept=10)
    drawn = [pool.draw(size) for _ in range(1000) for size in (64, 128)]
    assert [size for size, _ in drawn] == [64, 128] * 1000
    assert 3 < len(drawn) / len(set(drawn)) < 5
    assert {size: len(kept) for size, kept in pool.kept.items()} == {64: 10, 128: 10}


def test_a_cleared_pool_shows_nothing_that_it_has_shown() -> None:
    counter = itertools.count()
    pool = Pool(lambda size: next(counter), torch.Generator().manual_seed(0))
    before = {pool.draw(64) for _ in range(50)}
    pool.clear()
    assert not before & {pool.draw(64) for _ in range(50)}
