"""Where a run asks whether it is still wanted: in every module of every network, and in whatever goes through bytes.

    with asking(cancelled):         # cancelled() -> bool, cheap, from any thread
        network(x)                  # raises Cancelled before any of its modules, once cancelled() is true
        for part in parts:
            check()                 # as does this: before each `CHECK_BYTES` that are read, loaded or patched
            ...

Outside of `asking` nobody is asked. Whom to ask belongs to the context, which a thread has to be given (`contextvars`,
see `threads.side_by_side`). What is half done is for those who do it to leave in order: `Cancelled` may come from any
call that computes.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar

from torch.nn.modules.module import register_module_forward_pre_hook

from layerdiffuse_mcp.errors import Cancelled

CHECK_BYTES = 1 << 26
"""The most that is read, loaded or patched between two checks."""

_cancelled: ContextVar[Callable[[], bool] | None] = ContextVar("cancelled", default=None)


def check() -> None:
    """Raise `Cancelled` if the work that this is part of is no longer wanted."""
    cancelled = _cancelled.get()
    if cancelled is not None and cancelled():
        raise Cancelled("The job was cancelled.")


@contextmanager
def asking(cancelled: Callable[[], bool] | None) -> Generator[None]:
    """Ask `cancelled` inside of the block, or nobody."""
    if cancelled is None:
        yield
        return
    token = _cancelled.set(cancelled)
    hook = register_module_forward_pre_hook(_before_module)
    try:
        yield
    finally:
        hook.remove()
        _cancelled.reset(token)


def _before_module(*_: object) -> None:
    check()
