"""How work is shared out among threads."""

import threading
import time

import pytest
import torch

from layerdiffuse_mcp.engine.device.threads import SMALL, for_denoiser, side_by_side


def test_results_come_in_order_from_several_threads_at_once() -> None:
    both = threading.Barrier(2, timeout=30)

    def work(item: int) -> int:
        both.wait()
        return item * item

    assert list(side_by_side(work, range(6), threads=2)) == [0, 1, 4, 9, 16, 25]


@pytest.mark.parametrize("threads", [1, 2])
def test_a_caller_that_stops_leaves_the_rest_out(threads: int) -> None:
    begun: list[int] = []

    def work(item: int) -> None:
        begun.append(item)
        time.sleep(0.01)

    listening = side_by_side(work, range(10_000), threads)
    next(listening)
    listening.close()
    assert len(begun) < 10_000


@pytest.mark.parametrize("inference", [True, False])
def test_threads_compute_as_the_caller_does(inference: bool) -> None:
    with torch.inference_mode(inference):
        results = list(side_by_side(lambda _: torch.ones(1) * 2, range(4), threads=2))
    assert [result.is_inference() for result in results] == [inference] * 4


@pytest.mark.parametrize(("device", "parameters", "expected"), [("cpu", 1, 1), ("cpu", SMALL, 3), ("cuda", 1, 3)])
def test_a_small_denoiser_runs_on_one_thread(device: str, parameters: int, expected: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with for_denoiser(parameters, 1, torch.device(device)):
            assert torch.get_num_threads() == expected
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
