"""The book of jobs: which there are, in which state, and for how long those that have ended are remembered.

    book = JobBook()
    book.add(job)
    book.get("job-863032aa"), book.in_state(State.RUNNING), book.newest_first()

However many there are, adding one, and asking how many are in a state, takes the same time.
"""

import time
from collections import deque
from collections.abc import Callable, Collection

from layerdiffuse_mcp.api.fields import near
from layerdiffuse_mcp.errors import JobNotFound
from layerdiffuse_mcp.jobs.job import Job, State
from layerdiffuse_mcp.wording import quoted

KEPT = 200
"""Finished jobs that are remembered; their pictures stay on disk for ever."""
KEY_SECONDS = 86_400.0
"""For how long a key stands for its job."""
NAMED = 8
"""Jobs that are named to whoever asks for one that is not here."""


class JobBook:
    """All jobs that are remembered, in the order in which they came."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._by_state: dict[State, dict[str, Job]] = {state: {} for state in State}
        self._ended: deque[str] = deque()
        self._by_key: dict[str, Job] = {}
        self.at_end: Callable[[Job], object] | None = None
        """Called with each job that ends."""
        self.at_change: Callable[[Job], object] | None = None
        """Called with each job that is new or whose state changes."""

    def add(self, job: Job) -> Job:
        """Remember a job; the oldest of those that have ended are forgotten."""
        self._jobs[job.id] = self._by_state[job.state][job.id] = job
        job.moved = self._moved
        if job.key is not None:
            self._by_key[job.key] = job
        self._note_change(job)
        if job.finished:
            self._note_end(job)
        while len(self._ended) > KEPT:
            forgotten = self._jobs.pop(self._ended.popleft())
            del self._by_state[forgotten.state][forgotten.id]
            if forgotten.key is not None and self._by_key.get(forgotten.key) is forgotten:
                del self._by_key[forgotten.key]
        return job

    def get(self, job_id: str) -> Job:
        """The job of that id.

        Raises:
            JobNotFound: naming the ids that exist.
        """
        job = self._jobs.get(job_id)
        if job is None:
            latest = [known.id for known in self.newest_first()[:NAMED]]
            known = near(job_id, latest) if latest else "This server has run no job yet."
            raise JobNotFound(f"There is no job {quoted(job_id)} on this server. {known}")
        return job

    def by_key(self, key: str | None) -> Job | None:
        """The job that was asked for with a key within a day, unless it ended without a result."""
        job = self._by_key.get(key) if key else None
        if job is None or time.monotonic() - job.created > KEY_SECONDS:
            return None
        return job if job.state is State.DONE or not job.finished else None

    def newest_first(self) -> list[Job]:
        """Every job that is remembered."""
        return list(reversed(self._jobs.values()))

    def in_state(self, state: State) -> Collection[Job]:
        """Those in a state, in the order in which they came to be in it."""
        return self._by_state[state].values()

    def _moved(self, job: Job, before: State) -> None:
        del self._by_state[before][job.id]
        self._by_state[job.state][job.id] = job
        self._note_change(job)
        if job.finished:
            self._note_end(job)

    def _note_change(self, job: Job) -> None:
        if self.at_change is not None:
            self.at_change(job)

    def _note_end(self, job: Job) -> None:
        self._ended.append(job.id)
        if self.at_end is not None:
            self.at_end(job)
