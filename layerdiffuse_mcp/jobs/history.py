"""Jobs that outlast their server: written down as their states change, and made of what was written.

    history = JobHistory(JobRecords(index))
    for job in await history.restored(): ...        # at the start, the oldest first
    history.note(job)                               # at each change, in the event loop: written soon, beside it
    await history.close()                           # at the end; what is written stands from then on

A job that waited is as it was, and may be queued again, one that starts from given pictures if these were kept
(`kept.py`). One that ran is interrupted.
"""

import json
import logging
import time
from collections.abc import Iterable, Iterator

import anyio
import anyio.to_thread
from pydantic import TypeAdapter, ValidationError

from layerdiffuse_mcp.api.finish import Finish
from layerdiffuse_mcp.api.outcome import Outcome
from layerdiffuse_mcp.api.plan import Download, Planned, any_task
from layerdiffuse_mcp.errors import Interrupted, LayerDiffuseError
from layerdiffuse_mcp.jobs.job import FINAL, Job, State
from layerdiffuse_mcp.jobs.kept import kept
from layerdiffuse_mcp.outputs.records import JobRecords, Record

WAITED = frozenset({State.QUEUED, State.DOWNLOADING})
GATHERED = 0.5
"""Seconds of changes that are written together."""
_FINISH: TypeAdapter[Finish | None] = TypeAdapter(Finish | None)

logger = logging.getLogger(__name__)


class JobHistory:
    """What is written down of jobs."""

    def __init__(self, records: JobRecords) -> None:
        self._records = records
        self._changed: dict[str, Job] = {}
        self._wake = anyio.Event()
        self._writing = anyio.Lock()
        self.closed = False
        """Whether what is written stands."""

    def note(self, job: Job) -> None:
        """Have a job written down as it is."""
        if self._records.kept and not self.closed:
            self._changed[job.id] = job
            self._wake.set()

    async def write(self) -> None:
        """Write down what changes, for ever; what changes meanwhile is written together."""
        while True:
            await self._wake.wait()
            await anyio.sleep(GATHERED)
            self._wake = anyio.Event()
            await self._flush()

    async def close(self) -> None:
        """Write down the rest; later changes are those of the end, and do not count."""
        self.closed = True
        await self._flush()
        await anyio.to_thread.run_sync(self._records.leave)

    async def restored(self, numbers: Iterator[int], *, resume: bool) -> list[Job]:
        """The jobs of servers that are gone, the oldest first: ended, or with `resume` such as wait again."""
        records = await anyio.to_thread.run_sync(self._records.adopted)
        jobs: list[Job] = []
        for record in records:
            job = _job_of(record, numbers)
            if job is None:
                continue
            jobs.append(job)
            waits = record.state in WAITED and resume and outlasts(job)
            if not job.finished and not waits:
                job.end(State.INTERRUPTED, error=interrupted(record.state, outlasts(job)))
                self.note(job)
        return jobs

    async def _flush(self) -> None:
        async with self._writing:
            changed, self._changed = self._changed, {}
            records = [_record_of(job) for job in changed.values()]
            await anyio.to_thread.run_sync(self._records.keep, records)


def outlasts(job: Job) -> bool:
    """Whether another server can do it: where it starts from pictures these have to be there."""
    return bool(job.inputs) or not job.starts_from_pictures


def interrupted(state: str, complete: bool = True) -> Interrupted:
    """Why a job was not done that was in this state when its server ended; of one that is not `complete` the pictures
    that it starts from are gone.
    """
    begun = "before this job began" if state in WAITED else "while this job ran"
    lost = "" if complete else ", the server's copies of the pictures that it starts from are gone"
    text = f"The server ended {begun}{lost}, and it left no pictures. Make the call again"
    return Interrupted(f"{text}; with the same seed it draws the same.")


def _record_of(job: Job) -> Record:
    def wall(moment: float | None) -> float | None:
        return None if moment is None else time.time() - time.monotonic() + moment

    planned = {
        "tasks": [task.model_dump(mode="json") for task in job.tasks],
        "downloads": [download.model_dump(mode="json") for download in job.downloads],
        "finish": _FINISH.dump_python(job.finish, mode="json"),
        "inputs": {digest: path.name for digest, path in job.inputs.items()},
        "asked": job.asked,
    }
    error = job.error
    return Record(
        id=job.id,
        what=job.what,
        client=job.client,
        key=job.key,
        state=job.state.value,
        created=wall(job.created) or 0.0,
        started=wall(job.started),
        ended=wall(job.ended),
        planned=json.dumps(planned),
        outcome=job.outcome.model_dump_json() if job.outcome else None,
        error_code=error.code if error else None,
        error=str(error) if error else None,
    )


def _job_of(record: Record, numbers: Iterator[int]) -> Job | None:
    """The job that was written down; None where that cannot be read, as of a version whose plans are others."""

    def moment(wall: float | None) -> float | None:
        return None if wall is None else time.monotonic() - max(0.0, time.time() - wall)

    try:
        planned = json.loads(record.planned)
        known = Planned(
            tuple(any_task(task) for task in planned["tasks"]),
            inputs=kept(record.id, planned.get("inputs", {})),
            downloads=tuple(Download.model_validate(one) for one in planned["downloads"]),
            finish=_FINISH.validate_python(planned["finish"]),
        )
        outcome = Outcome.model_validate_json(record.outcome) if record.outcome else None
        state = State(record.state)
    except (ValidationError, ValueError, TypeError, KeyError, AttributeError):
        logger.info("what was written down of %s cannot be read", record.id, exc_info=True)
        return None
    job = Job(record.what, known, record.client, numbers, record.key, planned.get("asked"))
    job.id, job.starts_from_pictures = record.id, bool(planned.get("inputs"))
    job.created = moment(record.created) or 0.0
    if state in FINAL:
        job.started = moment(record.started)
        error = _error(record.error_code, record.error) if record.error is not None else None
        job.end(state, outcome, error)
        job.ended = moment(record.ended)
    return job


def _error(code: str | None, text: str) -> LayerDiffuseError:
    kinds = {kind.code: kind for kind in _kinds([LayerDiffuseError])}
    return kinds.get(code or "", LayerDiffuseError)(text)


def _kinds(classes: Iterable[type[LayerDiffuseError]]) -> Iterator[type[LayerDiffuseError]]:
    for kind in classes:
        yield kind
        yield from _kinds(kind.__subclasses__())
