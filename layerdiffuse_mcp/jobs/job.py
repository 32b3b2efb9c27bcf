"""A job: tasks on their way, its state, progress and end."""

import secrets
import time
from collections.abc import Callable
from enum import StrEnum

import anyio

from layerdiffuse_mcp.api.outcome import ImageResult, Outcome, Progress
from layerdiffuse_mcp.api.plan import Planned, batch_key
from layerdiffuse_mcp.errors import LayerDiffuseError


class State(StrEnum):
    """The life of a job, in order; the last three are final. Only what is not on this machine is downloaded first.

    CANCELLING is what `Job.status` says of one that was cancelled while its worker has not stopped yet: for whoever
    waits for it, it has ended.
    """

    DOWNLOADING = "downloading"
    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


BEGUN = 0.1
"""Share of a job from which on its own progress tells more than other jobs do."""
FINAL = frozenset({State.DONE, State.FAILED, State.CANCELLED})


class Job:
    """One or more tasks on their way; it ends with its last. Read it freely; only `Jobs` changes it.

    Jobs of one `batch_key` can be drawn as one batch; one without a key, as with several tasks, is drawn alone.
    `occupies`: whether a worker is at it. `expected`: seconds that its drawing takes as others did here (`pace.py`).
    `at_end`: what is called once, when it ends. `created`, `started` and `ended` are seconds of the monotonic clock, of
    use for spans alone.
    """

    def __init__(self, what: str, planned: Planned) -> None:
        self.id = f"job-{secrets.token_hex(4)}"
        self.what = what
        self.tasks, self.inputs, self.downloads = planned.tasks, planned.inputs, planned.downloads
        self.finish = planned.finish
        self.batch_key = batch_key(self.tasks[0]) if len(self.tasks) == 1 else None
        self.state = State.QUEUED
        self.occupies = False
        self.progress = Progress(fraction=0.0, message="waiting")
        self.outcome: Outcome | None = None
        self.error: LayerDiffuseError | None = None
        self.expected: float | None = None
        self.created = time.monotonic()
        self.started: float | None = None
        self.ended: float | None = None
        self.scope = anyio.CancelScope()
        self.group: list[Job] = [self]
        self.changed = anyio.Event()
        self.at_end: list[Callable[[], object]] = []

    @property
    def finished(self) -> bool:
        """Whether the state is final."""
        return self.state in FINAL

    @property
    def status(self) -> State:
        """The state as it is told: one that is cancelled and still occupies its worker is `CANCELLING`."""
        stopping = self.occupies and self.scope.cancel_called
        return State.CANCELLING if stopping and self.state is State.CANCELLED else self.state

    @property
    def seconds(self) -> float:
        """How long it has run, or ran."""
        return 0.0 if self.started is None else (self.ended or time.monotonic()) - self.started

    @property
    def seconds_left(self) -> float | None:
        """A guess: at first by what is expected, then by the progress made; None while there is nothing to go by."""
        fraction = self.progress.fraction
        if self.state is State.RUNNING and fraction < BEGUN and self.expected is not None:
            return self.expected * (1 - fraction)
        if self.state not in (State.DOWNLOADING, State.RUNNING) or fraction < 0.05:
            return None
        return self.seconds * (1 - fraction) / fraction

    def image(self, number: int) -> ImageResult | None:
        """The picture of that number, from 1."""
        images = self.outcome.images if self.outcome else ()
        return images[number - 1] if 1 <= number <= len(images) else None

    def _announce(self) -> None:
        self.changed.set()
        self.changed = anyio.Event()

    def report(self, progress: Progress) -> None:
        """Take note of progress, which ends with the job; the fraction never falls."""
        if self.finished:
            return
        if progress.fraction < self.progress.fraction:
            progress = progress.model_copy(update={"fraction": self.progress.fraction})
        self.progress = progress
        self._announce()

    def download(self) -> None:
        """What it lacks is being fetched from now on."""
        self.state, self.started = State.DOWNLOADING, time.monotonic()
        self.report(Progress(fraction=0.0, message="waiting for other downloads"))

    def wait(self) -> None:
        """It waits for a worker."""
        self.state, self.scope = State.QUEUED, anyio.CancelScope()
        self._announce()

    def begin(self, group: "list[Job] | None" = None) -> None:
        """A worker is free for it, alone or in a group, which is stopped as a whole."""
        self.group = group or [self]
        self.scope = self.group[0].scope if group else anyio.CancelScope()
        self.state, self.started, self.occupies = State.RUNNING, self.started or time.monotonic(), True
        self.report(Progress(fraction=0.0, message="starting"))

    def end(self, state: State, outcome: Outcome | None = None, error: LayerDiffuseError | None = None) -> None:
        """It has ended in a final state; the first end is the one that counts."""
        if self.finished:
            return
        self.state, self.outcome, self.error, self.ended = state, outcome, error, time.monotonic()
        fraction = 1.0 if state is State.DONE else self.progress.fraction
        self.progress = Progress(fraction=fraction, message=state.value)
        while self.at_end:
            self.at_end.pop()()
        self._announce()
