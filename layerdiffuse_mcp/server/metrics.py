"""What Prometheus is told of a server: numbers over all clients, without names, prompts or paths.

metrics = Metrics(tokens)
metrics.ended(job)                      # at each job's end
text = metrics.text(clients)            # in the event loop; METRICS_TYPE is its media type
"""

import os
from collections.abc import Iterable, Iterator

import prometheus_client
import psutil
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from layerdiffuse_mcp.backends.backend import PHASES
from layerdiffuse_mcp.jobs.job import FINAL, Job, State
from layerdiffuse_mcp.server.services import Clients
from layerdiffuse_mcp.server.tokens import Guard

METRICS_TYPE = CONTENT_TYPE_LATEST
PREFIX = "layerdiffuse"
BUCKETS = (0.1, 0.3, 1, 3, 10, 30, 60, 120, 300, 600, 1800)
"""Seconds."""

prometheus_client.disable_created_metrics()  # pyright: ignore[reportUnknownMemberType]


class Metrics:
    """The counts of one server, which these tokens guard."""

    def __init__(self, tokens: Guard) -> None:
        self._tokens = tokens
        self._registry = CollectorRegistry()
        self._ended = Counter("jobs_ended", "Jobs by how they ended", ["state"], PREFIX, registry=self._registry)
        self._seconds = Histogram(
            "phase_seconds",
            "Seconds that jobs which were done have spent in a phase; total is without wait",
            ["phase"],
            PREFIX,
            registry=self._registry,
            buckets=BUCKETS,
        )
        for state in FINAL:
            self._ended.labels(state.value)

    def ended(self, job: Job) -> None:
        """Count a job that has ended."""
        self._ended.labels(job.state.value).inc()
        if job.state is State.DONE and job.started is not None and job.tasks and job.outcome is not None:
            spent = {"wait": job.started - job.created, **job.outcome.timings.model_dump()}
            for phase, seconds in spent.items():
                self._seconds.labels(phase).observe(seconds)

    def text(self, clients: Clients) -> bytes:
        """All of it, in Prometheus' text format."""
        now = CollectorRegistry()
        now.register(_Now(clients, self._tokens))
        return generate_latest(self._registry) + generate_latest(now)


class _Now:
    """How the server is at this moment."""

    def __init__(self, clients: Clients, tokens: Guard) -> None:
        self._known = [*clients.services.values()]
        self._tokens = tokens

    def collect(self) -> Iterator[Metric]:
        dispatcher, pictures = self._known[0].jobs.dispatcher, self._known[0].pictures
        workers = dispatcher.backend.state()
        jobs = {
            state.value: sum(known.jobs.count(state) for known in self._known) for state in State if state not in FINAL
        }
        del jobs[State.CANCELLING]
        yield _gauge("jobs", "Jobs that have not ended, by state", "state", jobs.items())
        yield _gauge("queue_length", "Tasks that wait for a worker", None, [("", dispatcher.waiting)])
        refused = "1 while the file of tokens cannot be used as it is, and those that it had before count"
        yield _gauge("tokens_file_refused", refused, None, [("", self._tokens.refused)])
        phases = ((phase, sum(worker.phase == phase for worker in workers)) for phase in PHASES)
        yield _gauge("workers", "Worker processes by what they do", "phase", phases)
        of = {"server": [os.getpid()], "workers": [worker.pid for worker in workers], "pictures": pictures.pids}
        memory = ((name, sum(map(_resident, pids))) for name, pids in of.items())
        yield _gauge("resident_memory_bytes", "Memory of this server's processes", "process", memory)
        for kind in ("free", "total"):
            told = {str(worker.worker): worker.engine.get(f"memory_{kind}") for worker in workers}
            numbers = ((worker, size) for worker, size in told.items() if isinstance(size, int | float))
            yield _gauge(
                f"device_memory_{kind}_bytes", f"Memory of a worker's device, {kind}, as last told", "worker", numbers
            )


def _gauge(name: str, about: str, label: str | None, values: Iterable[tuple[str, float]]) -> Metric:
    family = GaugeMetricFamily(f"{PREFIX}_{name}", about, labels=[label] if label else [])
    for value, number in values:
        family.add_metric([value] if label else [], number)
    return family


def _resident(pid: int | None) -> int:
    try:
        return psutil.Process(pid).memory_info().rss if pid else 0
    except psutil.Error:  # it has just ended
        return 0
