"""How far the queue scales with workers, and what it costs the server: tasks that only sleep.

    python benchmarks/scale.py [--tasks 500] [--seconds 1] [--workers 1 2 4 8 16] [--queued 10000] [--ray]

With --ray the workers are actors of a Ray cluster on this machine, whose nodes claim as many CPUs as are needed.

Each task sleeps in a worker process, in ten steps of which each is reported, and comes back with a file of 10 kB that
is written: all that the server does for a real task, without the drawing. `speed-up` is against the sleeping alone, one
task after another; fewer workers get as many fewer tasks. `server ms a task` is the processor time of the
server's process, planning included. The second table queues jobs behind one that never ends: memory a job and the time
to list the latest hundred are to stay flat.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import anyio
from _report import header, resident_memory, table

from layerdiffuse_mcp.api.outcome import EncodedFile, Outcome, PictureFacts, Progress
from layerdiffuse_mcp.api.plan import DrawPlan, Inputs, Planned, Task, make_plan
from layerdiffuse_mcp.api.requests import GenerateRequest
from layerdiffuse_mcp.backends.local import LocalBackend
from layerdiffuse_mcp.backends.ray import RayBackend
from layerdiffuse_mcp.families.registry import FAMILIES
from layerdiffuse_mcp.jobs.job import State
from layerdiffuse_mcp.jobs.queue import Jobs
from layerdiffuse_mcp.settings import Settings

STEPS = 10
LISTED = 100
BUDGET = 0.95
"""Of N times as fast, on N workers."""
PROCESSOR_MS = 10.0


class Engine:
    """Sleeps as long as its prompt says, and draws nothing."""

    def __init__(self, settings: Settings) -> None:
        self.model: str | None = None

    def run(
        self,
        task: Task,
        inputs: Inputs,
        report: Callable[[Progress], None],
        cancelled: Callable[[], bool] | None = None,
    ) -> Outcome:
        assert isinstance(task, DrawPlan)
        self.model = task.model
        until = time.monotonic()
        for step in range(STEPS):
            until += float(task.prompt) / STEPS
            time.sleep(max(0.0, until - time.monotonic()))
            report(Progress(fraction=(step + 1) / STEPS, message=f"step {step + 1}/{STEPS}"))
        facts = PictureFacts(role="foreground", width=1, height=1, seed=task.seed, alpha=None)
        file = EncodedFile(name=f"{task.seed}.png", data=b"x" * 10_000, picture=facts)
        return Outcome(model=task.model, device="sleep", encoded=(file,))

    def unload(self, model: str | None = None) -> list[str]:
        return []

    def status(self) -> dict[str, Any]:
        return {"loaded": [{"model": self.model}] if self.model else []}

    def close(self) -> None: ...


def planned(seconds: float, seed: int) -> Planned:
    request = GenerateRequest(prompt=str(seconds), seed=seed)
    return Planned((make_plan(request, FAMILIES["sd15"], model="sleep", native_size=512),))


def opened(settings: Settings, workers: int) -> Jobs:
    changed = settings.model_copy(update={"workers": workers, "device": "cpu"})
    backend = RayBackend if settings.backend == "ray" else LocalBackend
    return Jobs(backend(changed, "scale:Engine"), changed)


@contextmanager
def cluster(cpus: int) -> Generator[str]:
    """The address of a Ray cluster: a head for this process, and two nodes."""
    from ray.cluster_utils import Cluster

    store = {"object_store_memory": 100 * 2**20, "include_dashboard": False}
    running = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **store})
    try:
        for _ in range(2):
            running.add_node(num_cpus=(cpus + 1) // 2, **store)
        yield running.address
    finally:
        running.shutdown()


async def speed(settings: Settings, workers: int, tasks: int, seconds: float) -> tuple[float, float]:
    """Seconds until all tasks are done, and processor seconds of this process meanwhile."""
    async with opened(settings, workers) as jobs:
        await jobs.backend.warm_up()
        started = [jobs.submit(planned(0.01, seed)) for seed in range(workers)]
        for job in started:
            await jobs.follow(job, 300)
        wall, processor = time.monotonic(), time.process_time()
        asked = [jobs.submit(planned(seconds, seed)) for seed in range(tasks)]
        for job in asked:
            await jobs.follow(job, 3600)
        spent = time.monotonic() - wall, time.process_time() - processor
        assert all(job.state is State.DONE for job in asked), [job.error for job in asked if job.error][:1]
        return spent


async def queued(settings: Settings, counts: list[int]) -> list[tuple[object, ...]]:
    """For each count: kilobytes a job, milliseconds to submit one and to list the latest."""
    rows: list[tuple[object, ...]] = []
    async with opened(settings, 1) as jobs:
        jobs.submit(planned(1e6, 0))
        await anyio.sleep(0)
        number, before = 0, resident_memory()
        for count in counts:
            began, first = time.perf_counter(), number
            while number < count:
                number += 1
                jobs.submit(planned(1.0, number))
            submitted = 1000 * (time.perf_counter() - began) / max(1, number - first)
            began = time.perf_counter()
            for job in jobs.newest_first()[:LISTED]:
                jobs.progress(job)
            listed = 1000 * (time.perf_counter() - began)
            rows.append((count, (resident_memory() - before) / 1e3 / count, submitted, listed))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=1.0, help="that each task takes")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--queued", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--ray", action="store_true", help="workers of a Ray cluster")
    options = parser.parse_args()
    here = str(Path(__file__).parent)  # workers import their engine from here
    sys.path.insert(0, here)
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)

    where = "a Ray cluster" if options.ray else "one machine"
    header(f"{options.tasks} tasks of {options.seconds:g} s on workers of {where}")
    rows: list[tuple[object, ...]] = [("workers", "wall s", "speed-up", "of N", "server ms a task")]
    good = True
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        os.environ["XDG_STATE_HOME"] = folder
        settings = Settings(output_dir=Path(folder, "out"), queue_size=100_000, idle_timeout=0)
        if options.ray:
            address = stack.enter_context(cluster(max(options.workers)))
            settings = settings.model_copy(update={"backend": "ray", "ray_address": address, "ray_cpus": 1})
        for workers in options.workers:
            tasks = options.tasks * workers // max(options.workers)
            wall, processor = anyio.run(speed, settings, workers, tasks, options.seconds)
            gain = tasks * options.seconds / wall
            cost = 1000 * processor / tasks
            good = good and gain >= BUDGET * workers and cost <= PROCESSOR_MS
            rows.append((workers, wall, gain, gain / workers, cost))
        table(rows)
        print(f"\nbudget: {BUDGET} of N, {PROCESSOR_MS:g} ms a task\n")
        found = anyio.run(queued, settings, options.queued)
    table([("queued", "kB a job", "ms to submit one", f"ms to list {LISTED}"), *found])
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
