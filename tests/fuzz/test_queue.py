"""The queue under any order of events: jobs are submitted, grouped, cancelled, their worker is killed or stopped, the
server restarts. Every job ends as it must, in order, and no process is left.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from layerdiffuse_mcp.api.plan import DrawPlan
from layerdiffuse_mcp.backends.local import LocalBackend
from layerdiffuse_mcp.errors import LayerDiffuseError, QueueFull
from layerdiffuse_mcp.jobs.job import FINAL, Job, State
from layerdiffuse_mcp.jobs.queue import Jobs
from layerdiffuse_mcp.settings import Settings
from tests.conftest import PROGRAMS
from tests.fuzz.examples import check_words, examples
from tests.tasks import planned

PATIENCE = 60.0
GRACE = 0.5
"""Seconds that a cancelled job gets to reach its next step; one that is stopped never does."""
ENDS = {
    "steps 1": State.DONE,
    "steps 5": State.DONE,
    "print": State.DONE,
    "refused": State.FAILED,
    "broken": State.FAILED,
    "killed": State.FAILED,
}
"""How a job of each prompt ends when nothing happens to it."""


class Queue(RuleBasedStateMachine):
    """What happens to a queue, and what has to be so after each event."""

    settings: Settings

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.portal = self.stack.enter_context(start_blocking_portal())
        self.open = ExitStack()
        self.submitted: list[Job] = []
        self.disturbed: set[str] = set()
        """Jobs that were cancelled, or whose worker was killed under them: they may end otherwise."""
        self.pids: set[int] = set()

    @initialize(grouped=st.booleans(), workers=st.sampled_from((1, 3)))
    def begin(self, grouped: bool, workers: int) -> None:
        changes = {"group_jobs": grouped, "queue_size": 6, "workers": workers, "device": "cpu"}
        settings = self.settings.model_copy(update=changes)
        self.begun = settings
        self._open()

    def _open(self) -> None:
        async def make() -> Jobs:
            return Jobs(LocalBackend(self.begun, "rehearsal:Engine", GRACE), self.begun)

        self.jobs = self.open.enter_context(self.portal.wrap_async_context_manager(self.portal.call(make)))

    @rule(prompt=st.sampled_from(sorted(ENDS)), seed=st.integers(0, 99))
    def submit(self, prompt: str, seed: int) -> None:
        try:
            self.submitted.append(self._do(self.jobs.submit, planned(prompt, seed=seed)))
        except QueueFull as error:
            check_words(str(error))

    @rule()
    def ask_for_the_status(self) -> None:
        if len(self.submitted) < 50:
            self._do(self.jobs.backend.state)

    @precondition(lambda self: self.submitted)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(self.submitted[-6:]), "job")
        self.disturbed.add(job.id)
        self._do(self.jobs.cancel, job)

    @rule(
        signals=st.sampled_from(((signal.SIGKILL,), (signal.SIGTERM,), (signal.SIGSTOP, signal.SIGKILL))),
        which=st.integers(0, 2),
    )
    def kill_a_worker(self, signals: tuple[signal.Signals, ...], which: int) -> None:
        living = self.living()
        for pid in living[which : which + 1]:
            self.disturbed |= {job.id for job in self.submitted if job.state not in FINAL}
            for number in signals:
                os.kill(pid, number)
            with suppress(ChildProcessError):  # until all its threads are gone: what comes next gets another worker
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

    @rule(seconds=st.sampled_from((0.0, 0.01, 0.05, 0.2)))
    def let_time_pass(self, seconds: float) -> None:
        self.portal.call(anyio.sleep, seconds)

    @rule()
    def wait_for_all(self) -> None:
        for job in self.submitted:
            self.portal.call(self.jobs.follow, job, PATIENCE)
            self._check(job)

    @rule()
    def restart(self) -> None:
        self.disturbed |= {job.id for job in self.submitted if job.state not in FINAL}
        self.open.close()
        self._all_are_gone()
        for job in self.submitted:
            self._check(job)
        self.submitted.clear()
        self._open()

    @invariant()
    def jobs_are_what_they_may_be(self) -> None:
        if not hasattr(self, "jobs"):
            return
        self.living()
        at_work = self._do(lambda: {part.job.id for job in self.jobs.running for b in job.batches for part in b.parts})
        assert isinstance(self.begun.workers, int)
        assert len(at_work) <= self.begun.workers * (8 if self.begun.group_jobs else 1)
        for job in self.submitted:
            assert 0 <= job.progress.fraction <= 1
            assert job.seconds >= 0
            if job.state in FINAL:
                self._check(job)

    def _check(self, job: Job) -> None:
        """A job has ended, in a way in which it may."""
        [task] = job.tasks
        assert isinstance(task, DrawPlan)
        assert job.state in FINAL, job.state
        assert (job.outcome is not None) == (job.state is State.DONE)
        assert (job.error is not None) == (job.state is State.FAILED)
        if isinstance(job.error, LayerDiffuseError):
            check_words(str(job.error))
        if job.id not in self.disturbed:
            assert job.state is ENDS[task.prompt]

    def living(self) -> list[int]:
        """The workers' processes, which are remembered: they have to be gone in the end."""
        found = [state.pid for state in self._do(self.jobs.backend.state) if state.pid is not None]
        self.pids.update(found)
        return found

    def _do(self, call: Callable[..., Any], *given: Any) -> Any:
        """Call what belongs to the event loop."""
        return self.portal.call(call, *given)

    def _all_are_gone(self) -> None:
        deadline = time.monotonic() + 5
        while left := [pid for pid in self.pids if alive(pid)]:
            assert time.monotonic() < deadline, left
            time.sleep(0.02)

    def teardown(self) -> None:
        try:
            self.open.close()
            self._all_are_gone()
            for job in self.submitted:
                assert job.state in FINAL
        finally:
            self.stack.close()


def alive(pid: int) -> bool:
    """Whether a process runs still; one that has ended and was not asked for its status does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The rehearsal engine can be imported in workers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(PROGRAMS)
        yield


def test_whatever_happens_every_job_ends_as_it_must(settings: Settings, importable: None, tmp_path: Path):
    Queue.settings = settings
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        limits = examples(8)
        run_state_machine_as_test(Queue, settings=type(limits)(limits, stateful_step_count=20))
