"""How work is shared out among the threads of a CPU.

Torch splits every single operation among its threads, which then wait for each other, asleep (see `startup.DEFAULTS`).
That pays for large operations alone. So a small network runs on one thread, and pieces of work that do not need each
other run side by side, each on a thread of its own, and meet once.

    with for_denoiser(parameters, pixels, device):
        ...
    for result in side_by_side(work, items, threads=ALL): ...
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import Context, copy_context
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

ALL = torch.get_num_threads()
"""The threads that torch began with."""

SMALL = 1e12
"""Parameters of a denoiser times the pixels drawn at once, below which one thread is sooner done than two that wait for
each other. Measured on two cores: on one thread the pocket model takes half the time at 128 px (1e11), four fifths at
256 px, and a fifth longer at 512 px (2e12); SD 1.5 takes half as long again at 256 px (6e13)."""


@contextmanager
def for_denoiser(parameters: int, pixels: int, device: torch.device) -> Generator[None]:
    """As many threads as a denoiser gains from. Counts for the caller's thread, until the end of the block."""
    before = torch.get_num_threads()
    if device.type == "cpu" and parameters * pixels < SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def side_by_side(work: Callable[[Item], Result], items: Sequence[Item], threads: int) -> Iterator[Result]:
    """`work` of each item, in their order, on up to `threads` threads that share all of torch's among them.

    An error of an item is raised where its result would be. When the caller stops listening, items that have not begun
    are left out, and those that have are waited for.
    """
    if min(threads, len(items)) <= 1:
        yield from map(work, items)
        return
    inference, before = torch.is_inference_mode_enabled(), torch.get_num_threads()

    def alone(item: Item, context: Context) -> Result:
        with torch.inference_mode(inference):  # a thread begins without
            return context.run(work, item)

    contexts = [copy_context() for _ in items]  # without that, too: by it `cancellation.check` knows whom to ask

    executor = ThreadPoolExecutor(threads, "side", torch.set_num_threads, (max(1, ALL // threads),))
    try:
        yield from executor.map(alone, items, contexts)
    finally:
        executor.shutdown(cancel_futures=True)
        torch.set_num_threads(before)  # for threads to come, which the pool's have changed
