"""Running tasks on a worker, alone or as a batch.

    runner = Runner(backend, learn)
    again = await runner.draw(batch)     # parts that have to come once more, each alone

It chooses nothing: what is next is the dispatcher's affair; `completing.py` ends the jobs.
"""

import contextlib
import logging
from collections.abc import Callable, Generator
from typing import cast

from layerdiffuse_mcp.api.outcome import Outcome, Progress, Timings
from layerdiffuse_mcp.api.plan import DrawPlan, GroupPlan, Task
from layerdiffuse_mcp.backends.backend import Backend, Report
from layerdiffuse_mcp.errors import LayerDiffuseError, WorkerDied, WorkerLost
from layerdiffuse_mcp.jobs.job import Batch, Job, Part, State

Learn = Callable[[Task, Outcome], None]

logger = logging.getLogger(__name__)


class Runner:
    """Runs tasks on a backend.

    Args:
        learn: hears what a task took, in its outcome.
    """

    def __init__(self, backend: Backend, learn: Learn) -> None:
        self._backend = backend
        self._learn = learn

    async def draw(self, batch: Batch) -> list[Part]:
        """Have a batch drawn, whose jobs have begun it; a job whose own task fails ends with that.

        Returns the parts that are to be drawn again, each alone: all that are wanted still of a batch that failed, for
        the error is one's alone as a rule.
        """
        jobs = batch.jobs

        def report(progress: Progress) -> None:
            for job, indices in jobs.items():
                job.report_on(indices, progress)

        try:
            with batch.scope:
                await self._draw(batch, report)
        except Exception as error:
            first, *others = batch.parts
            if isinstance(error, WorkerLost) and first.index not in first.job.lost:
                return _once_more(batch)
            if others:
                logger.info("a batch of %s tasks failed: each is drawn alone", len(batch.parts), exc_info=True)
                return [part for part in batch.parts if not part.job.finished]
            with failing(first.job):
                raise error
        finally:
            for job in jobs:
                job.batches.remove(batch)
        return []

    async def _draw(self, batch: Batch, report: Report) -> None:
        tasks: list[Task] = [part.task for part in batch.parts]
        task = tasks[0] if len(tasks) == 1 else GroupPlan(plans=tuple(cast("list[DrawPlan]", tasks)))
        outcome = await self._backend.run(task, batch.parts[0].job.inputs, report, batch.worker)
        outcomes = (outcome,) if len(tasks) == 1 else outcome.parts
        firsts = {job: min(indices) for job, indices in batch.jobs.items()}
        for part, one in zip(batch.parts, outcomes, strict=True):
            if not part.job.finished:  # each job has taken what all of the batch took, once
                timings = outcome.timings if part.index == firsts[part.job] else Timings()
                part.job.drawn(part.index, one.model_copy(update={"timings": timings}))
        self._learn(task, outcome)


def _once_more(batch: Batch) -> list[Part]:
    """The parts of a batch whose worker vanished, none of whose pictures has come home."""
    for job, indices in batch.jobs.items():
        logger.warning("%s: a worker vanished, so what it did is done once more", job.id)
        job.lost.update(indices)
    return [part for part in batch.parts if not part.job.finished]


@contextlib.contextmanager
def failing(job: Job) -> Generator[None]:
    """End the job with the error that the block raises."""
    try:
        yield
    except LayerDiffuseError as error:
        job.end(State.FAILED, error=error)
    except Exception:  # a bug in the backend must not take the queue with it
        logger.exception("%s failed unexpectedly", job.id)
        job.end(State.FAILED, error=WorkerDied("The backend failed unexpectedly; the server's log says how."))
