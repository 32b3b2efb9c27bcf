"""An engine for tests of the queue and of worker processes: it obeys its prompt and draws nothing.

steps 5        five steps of STEP seconds
print          writes to standard output, as libraries do
stuck 3        computes for three seconds without a step
killed         its process is killed
broken         a bug: an exception that is not ours
refused        an error of ours
signal 34      its process is ended by that signal
unfit          an error of ours, after which its process ends by itself
long ...       nothing: a prompt to make it as long as is wanted

A group obeys each prompt that is not steps, then the steps of the first, and leaves an empty file for each request.
"""

import os
import signal
import threading
import time
from collections.abc import Callable

from layerdiffuse_mcp.errors import LayerDiffuseError, OutOfMemory
from layerdiffuse_mcp.outcome import ImageResult, Outcome, Progress
from layerdiffuse_mcp.requests import GenerateRequest, GroupRequest, Request, StatusRequest, UnloadRequest
from layerdiffuse_mcp.settings import Settings

STEP = 0.03


class Engine:
    def __init__(self, settings: Settings) -> None:
        self.done: list[str] = []
        self.output = settings.output

    def run(self, request: Request, on_step: Callable[[Progress], None]) -> Outcome:
        match request:
            case StatusRequest():
                return Outcome(status={"pid": os.getpid(), "done": list(self.done)})
            case UnloadRequest():
                self.done.clear()
                return Outcome(status={})
            case GenerateRequest(prompt=prompt):
                self._obey(prompt, on_step)
                self.done.append(prompt)
                return Outcome(model="rehearsal", device="cpu", warnings=(str(os.getpid()),))
            case GroupRequest(requests=requests):
                for other in requests:
                    if not other.prompt.startswith("steps"):
                        self._obey(other.prompt, on_step)
                self._obey(requests[0].prompt, on_step)
                self.done.append(" and ".join(one.prompt for one in requests))
                return Outcome(parts=tuple(self._left_by(one) for one in requests))
            case _:
                raise LayerDiffuseError(f"cannot rehearse {request.kind}")

    def _left_by(self, request: GenerateRequest) -> Outcome:
        self.output.mkdir(exist_ok=True)
        path = self.output / f"{request.seed}.png"
        path.touch()
        image = ImageResult(role="foreground", path=path, width=1, height=1, seed=request.seed, alpha=None)
        return Outcome(model="rehearsal", device="cpu", images=(image,))

    def _obey(self, prompt: str, on_step: Callable[[Progress], None]) -> None:
        word, _, number = prompt.partition(" ")
        match word:
            case "steps":
                for step in range(int(number)):
                    time.sleep(STEP)
                    on_step(Progress(fraction=(step + 1) / int(number), message=f"step {step + 1}/{number}"))
            case "print":
                print("a library prints this", flush=True)  # noqa: T201 - the point
                os.write(1, b"and this, past Python\n")
            case "stuck":
                time.sleep(float(number))
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "signal":
                os.kill(os.getpid(), int(number))
                signal.pause()
            case "unfit":
                threading.Timer(0.05, os._exit, [3]).start()
                raise OutOfMemory("Too large, and no longer fit.")
            case "broken":
                raise ZeroDivisionError("a bug")
            case "refused":
                raise OutOfMemory("Too large for this device: ask for less.")
            case _:
                pass

    def close(self) -> None:
        self.done.clear()


class Unloadable:
    """An engine whose making fails, as when a library is missing."""

    def __init__(self, settings: Settings) -> None:
        raise ImportError("no torch here")
