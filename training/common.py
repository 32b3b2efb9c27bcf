"""What every stage shares: seeds, threads, checkpoints that resume, a cosine schedule with a deadline, loss logs."""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import torch
import torch.distributed

ASLEEP = 30.0  # seconds; a step that takes longer was stopped meanwhile (a laptop closed), which is no training time


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@cache
def has_bfloat16() -> bool:
    """Whether bfloat16 is faster than float32 here: on a CPU without instructions for it, it takes longer by far."""
    return device().type != "cpu" or any(has for name, has in torch.cpu.get_capabilities().items() if "bf16" in name)


def autocast(enabled: bool = True) -> torch.autocast:
    return torch.autocast(device().type, dtype=torch.bfloat16, enabled=enabled and has_bfloat16())


def stage_parser(description: str | None, *, minutes: float, rate: float) -> argparse.ArgumentParser:
    """The command line that all stages share; `minutes` and `rate` are what they take unless told otherwise."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/training"), help="data, checkpoints and logs")
    parser.add_argument("--minutes", type=float, default=minutes, help=f"training time; {minutes:g}")
    parser.add_argument("--rate", type=float, default=rate, help=f"highest learning rate; {rate:g}")
    return parser


class Team:
    """Several processes that train one network, each with its own batches: gradients are averaged after every step.

    On a shared CPU, single-threaded processes that meet once a step are several times faster than threads that meet
    in every operation. Started by `torchrun`; alone (no WORLD_SIZE in the environment) it does nothing.
    """

    def __init__(self) -> None:
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        if self.size > 1:
            torch.set_num_threads(1)
            torch.distributed.init_process_group("gloo")

    def average(self, module: torch.nn.Module, used: float) -> float:
        """Averages the gradients; returns the mean of `used`, the same number for all, so that all stop at the same
        step.
        """
        if self.size == 1:
            return used
        found = [parameter for parameter in module.parameters() if parameter.grad is not None]
        flat = torch.cat([*(parameter.grad.flatten() for parameter in found), torch.tensor([used])])
        torch.distributed.all_reduce(flat)
        flat /= self.size
        for parameter, part in zip(found, flat[:-1].split([parameter.numel() for parameter in found]), strict=True):
            parameter.grad.copy_(part.view_as(parameter))
        return float(flat[-1])


class Average:
    """Exponential moving average of a module's parameters, kept in fp32."""

    def __init__(self, module: torch.nn.Module, decay: float = 0.999) -> None:
        self.decay, self.steps = decay, 0
        self.values = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: torch.nn.Module) -> None:
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                self.values[name].lerp_(value, 1 - decay)


class Run:
    """One stage's training run: how far it is, in minutes of its own training time or steps, and where its files lie.

    A stage ends once `steps` are done where they are given, else after `minutes`; the learning rate follows a cosine
    over that span. Its checkpoint holds the steps and the time already used, so a stage that was stopped goes on where
    it was.
    """

    def __init__(
        self, work: Path, name: str, *, minutes: float, rate: float, warmup: int = 100, steps: int | None = None
    ) -> None:
        self.file, self.log_file = work / f"{name}.pt", work / f"{name}.log.jsonl"
        self.minutes, self.total, self.rate, self.warmup = minutes, steps, rate, warmup
        self.step, self.used = 0, 0.0
        self.agreed = 0.0  # the team's mean of `used`: all leave at the same step
        self.team = Team()
        self.sums: dict[str, float] = {}
        self.counted = 0

    def resume(self) -> dict | None:
        """The last checkpoint's state, or None; its step and time are taken over."""
        if not self.file.exists():
            return None
        state = torch.load(self.file, map_location=device(), weights_only=True)
        self.step, self.used = state["step"], state["used"]
        return state

    def save(self, **state: object) -> None:
        if self.team.rank:
            return
        temporary = self.file.with_suffix(".tmp")
        torch.save({"step": self.step, "used": self.used, **state}, temporary)
        temporary.replace(self.file)

    def begin(self, module: torch.nn.Module, optimizer: torch.optim.Optimizer, average: Average) -> None:
        """Go on from the last checkpoint, if there is one; `keep` saves these three from now on."""
        self.parts = module, optimizer, average
        if state := self.resume():
            module.load_state_dict(state["module"])
            if "optimizer" in state:
                optimizer.load_state_dict(state["optimizer"])
            average.values, average.steps = state["average"], self.step

    def keep(self, every: int = 1) -> None:
        """Save what `begin` was given, once in so many steps."""
        if self.step % every == every - 1:
            module, optimizer, average = self.parts
            self.save(module=module.state_dict(), optimizer=optimizer.state_dict(), average=average.values)

    @property
    def seed(self) -> int:
        """For this process's random numbers from here on: another one after each resumption."""
        return self.step + 1000003 * self.team.rank

    def steps(self, optimizer: torch.optim.Optimizer) -> Iterator[int]:
        """Counts steps until the last or until the time is used up; sets the optimizer's learning rate before each."""
        before = time.monotonic()
        self.agreed = self.used
        while (self.agreed < self.minutes * 60) if self.total is None else (self.step < self.total):
            done = self.used / (self.minutes * 60) if self.total is None else self.step / self.total
            share = min(1.0, done)
            warm = min(1.0, (self.step + 1) / self.warmup)
            for group in optimizer.param_groups:
                group["lr"] = (
                    self.rate * group.get("scale", 1.0) * warm * (0.02 + 0.98 * (1 + math.cos(math.pi * share)) / 2)
                )
            yield self.step
            self.step += 1
            now = time.monotonic()
            self.used, before = self.used + min(now - before, ASLEEP), now

    def update(self, module: torch.nn.Module, optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
        """One step of the optimizer along the team's gradients, clipped to norm 1."""
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.used = self.agreed = self.team.average(module, self.used)
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()

    def log(self, every: int = 50, **values: torch.Tensor | float) -> None:
        """Adds losses; every so many steps prints their means and appends them to the stage's log."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)
        self.counted += 1
        if self.counted == every:
            means = {name: round(total / every, 5) for name, total in self.sums.items()}
            self.note(**means)
            self.sums, self.counted = {}, 0

    def note(self, **values: float) -> None:
        """Prints a row and appends it to the stage's log."""
        row = {"step": self.step, "seconds": round(self.used), **values}
        if self.team.rank == 0:
            print(row, flush=True)
            with self.log_file.open("a") as file:
                file.write(json.dumps(row) + "\n")


def once(file: Path, build: Callable[[], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """What `build` makes, made only while there is no `file`; which appears whole, as several processes may ask."""
    if not file.exists():
        temporary = file.with_suffix(f".{os.getpid()}.tmp")
        torch.save(build(), temporary)
        temporary.replace(file)
    return torch.load(file, weights_only=True)


def psnr(error: torch.Tensor) -> torch.Tensor:
    """Mean squared error of values in 0..1 -> dB."""
    return -10 * torch.log10(error.clamp(min=1e-10))
