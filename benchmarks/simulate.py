"""What the rule that gives tasks to workers is worth, on workers that do not exist.

    python benchmarks/simulate.py [--workers 1000] [--models 20] [--tasks 20000] [--load 16] [--draw 8]

`jobs/schedule.py` itself, as the server runs it, with a clock that jumps from event to event. Clients ask at random
times for jobs of one to eight tasks, of models of which a few are asked for most. `load` is how busy the workers would
be if nothing ever had to be loaded. `passes`: how often a job may be passed over before it is next whoever is idle;
after 60 s it is in any case. A worker holds `--held` models and drops the least recently used. Beside the rule
stands the same queue blind to what workers hold: what affinity saves is the difference in loads.
"""

import argparse
import heapq
import random
import time
from collections import OrderedDict
from dataclasses import dataclass, field

from _report import table

from layerdiffuse_mcp.jobs.schedule import PASSES, Given, Idle, Schedule, Waiting

NOTHING: frozenset[str] = frozenset()


@dataclass
class Worker:
    """A worker: what it holds, least recently used first."""

    models: OrderedDict[str, frozenset[str]] = field(default_factory=OrderedDict)

    def take(self, model: str, held: int) -> bool:
        """Whether it had to load the model."""
        loaded = model not in self.models
        self.models[model] = NOTHING
        self.models.move_to_end(model)
        if len(self.models) > held:
            self.models.popitem(last=False)
        return loaded


class InOrder(Schedule):
    """The same queue with its turns, blind to what workers hold."""

    def next(self, idle: list[Idle], now: float) -> Given | None:
        given = super().next([Idle(0)] if idle else [], now)
        return given and Given(random.choice(idle).worker, given.tasks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--models", type=int, default=20)
    parser.add_argument("--tasks", type=int, default=20_000)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--held", type=int, default=2, help="models that a worker holds at once")
    parser.add_argument("--load", type=float, default=16.0, help="seconds that loading takes")
    parser.add_argument("--draw", type=float, default=8.0, help="seconds that a task takes, on average")
    options = parser.parse_args()
    print(f"{options.workers} workers, {options.models} models, {options.tasks} tasks, {options.clients} clients")
    print(f"loading takes {options.load:g} s, drawing {options.draw:g} s; a worker holds {options.held} models\n")
    rows: list[tuple[object, ...]] = [
        ("load", "rule", "loads", "loads a task", "mean wait s", "longest wait s", "all done s", "us a choice")
    ]
    for share in (0.5, 0.9, 1.5):
        for name, schedule in (
            ("in order", InOrder()),
            (f"{PASSES} passes", Schedule()),
            (f"{PASSES} passes a worker", Schedule(PASSES * options.workers)),
        ):
            rows.append((f"{share:.0%}", name, *simulate(schedule, share, options)))
    table(rows)


def simulate(schedule: Schedule, share: float, options: argparse.Namespace) -> tuple[object, ...]:
    """Loads, loads a task, mean and longest wait, when all was done, and microseconds that a choice takes."""
    random.seed(1)
    arrivals = asked(share, options)
    workers = [Worker() for _ in range(options.workers)]
    idle = dict.fromkeys(range(options.workers))
    busy: list[tuple[float, int]] = []
    came: dict[int, float] = {}
    waits: list[float] = []
    loads, now, spent, choices = 0, 0.0, 0.0, 0
    while arrivals or busy or len(schedule):
        now = min(arrivals[-1][0] if arrivals else float("inf"), busy[0][0] if busy else float("inf"))
        while arrivals and arrivals[-1][0] <= now:
            task = arrivals.pop()[1]
            came[task.number] = now
            schedule.add(task)
        while busy and busy[0][0] <= now:
            idle[heapq.heappop(busy)[1]] = None
        free = [Idle(number, workers[number].models) for number in idle] if len(schedule) else []
        while free and len(schedule):
            began = time.perf_counter()
            given = schedule.next(free, now)
            spent, choices = spent + time.perf_counter() - began, choices + 1
            assert given is not None
            free = [one for one in free if one.worker != given.worker]
            del idle[given.worker]
            [task] = given.tasks
            waits.append(now - came.pop(task.number))
            loaded = workers[given.worker].take(task.model, options.held)
            loads += loaded
            seconds = random.uniform(0.5, 1.5) * options.draw + loaded * options.load
            heapq.heappush(busy, (now + seconds, given.worker))
    return loads, loads / len(waits), sum(waits) / len(waits), max(waits), now, 1e6 * spent / choices


def asked(share: float, options: argparse.Namespace) -> list[tuple[float, Waiting]]:
    """When which task comes, the first one last."""
    found: list[tuple[float, Waiting]] = []
    popular = [1 / (rank + 1) for rank in range(options.models)]
    rate = share * options.workers / options.draw
    now, number, job = 0.0, 0, 0
    while number < options.tasks:
        job += 1
        count = random.choice((1, 1, 1, 2, 4, 8))
        now += random.expovariate(rate / count)
        [model] = random.choices(range(options.models), popular)
        client = str(random.randrange(options.clients))
        for _ in range(count):
            number += 1
            found.append((now, Waiting(number, job, client, f"model {model}")))
    return found[::-1]


if __name__ == "__main__":
    main()
