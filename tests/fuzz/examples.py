"""How often the fuzz tests try, and what they hold each try to.

    @examples(40)
    @given(...)
    def test_...(...):
        with bounded():
            ...

The same inputs come each time, so that a failure is everybody's. `FUZZ_TIMES=20` (`make fuzz`) tries twenty times as
often, other inputs each time; hypothesis then prints how to repeat what failed.
"""

import os
import re
import resource
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager

from hypothesis import HealthCheck, settings

from layerdiffuse_mcp.errors import LayerDiffuseError

TIMES = int(os.environ.get("FUZZ_TIMES", "1"))
CHECKS = (HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large)
SECONDS = 20.0
"""Processor time of one try: a hundred times what it takes, so that only what runs away is caught."""
MEMORY = 2**30
"""Bytes by which one try may raise the most that the process ever held."""


def examples(count: int) -> settings:
    """Try so many inputs."""
    return settings(
        max_examples=count * TIMES,
        deadline=None,
        derandomize=TIMES == 1,
        database=None,
        print_blob=True,
        suppress_health_check=CHECKS,
    )


@contextmanager
def bounded() -> Generator[None]:
    """Fails if what is done inside takes too much time or memory."""
    began, before = time.process_time(), peak()
    yield
    assert time.process_time() - began < SECONDS
    assert peak() - before < MEMORY


@contextmanager
def refusable() -> Generator[None]:
    """What is done inside may be refused, by an error of ours that names the matter in a few words."""
    try:
        with bounded():
            yield
    except LayerDiffuseError as error:
        check_words(str(error))


def check_words(text: str) -> None:
    """An error's text is short, says something, can be sent, and shows nothing of how we work inside."""
    assert 10 < len(text) < 4000, text[:200]
    text.encode()
    for inner in ("Traceback", "pydantic", "Error executing", "object at 0x", "failed unexpectedly (Unicode"):
        assert inner not in text, text[:500]
    assert not re.match("[a-z_]+ (failed unexpectedly|could not use)", text), text[:500]


def peak() -> int:
    """The most bytes that this process was ever resident with."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
