"""An engine for tests of the queue and of worker processes: it obeys its prompt and draws nothing.

steps 5        five steps of STEP seconds
print          writes to standard output, as libraries do
stuck 3        computes for three seconds without a step
killed         its process is killed
broken         a bug: an exception that is not ours
refused        an error of ours
draw           as many pictures as are asked for, of no pixels
square red 3   a red square on nothing, off its picture's middle; after three steps, if a number is given
signal 34      its process is ended by that signal
unfit          an error of ours, after which its process ends by itself
lost           an error that says why, after which it can tell no state
long ...       nothing: a prompt to make it as long as is wanted

A group obeys each prompt that is not steps, then the steps of the first, and has a square or an empty picture for each
plan.
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from layerdiffuse_mcp.api.outcome import EncodedFile, Outcome, PictureFacts, Progress, Timings
from layerdiffuse_mcp.api.plan import DrawPlan, GroupPlan, Inputs, PreparePlan, Task
from layerdiffuse_mcp.errors import LayerDiffuseError, OutOfMemory
from layerdiffuse_mcp.settings import Settings

STEP = 0.03
TOOK = 7.0
"""Seconds that a group says it took."""


class Engine:
    """It holds one model at a time, and says which it has loaded."""

    def __init__(self, settings: Settings) -> None:
        self.done: list[str] = []
        self.loads: list[str] = []
        self.model: str | None = None
        self.lost = False

    def status(self) -> dict[str, Any]:
        if self.lost:
            raise RuntimeError("the device is lost")
        loaded = [{"model": self.model}] if self.model else []
        return {"pid": os.getpid(), "done": list(self.done), "loaded": loaded, "loads": list(self.loads)}

    def unload(self, model: str | None = None) -> list[str]:
        dropped = list(self.done)
        self.done.clear()
        self.model = None
        return dropped

    def run(
        self,
        task: Task,
        inputs: Inputs,
        on_step: Callable[[Progress], None],
        cancelled: Callable[[], bool] | None = None,
    ) -> Outcome:
        model = task.plans[0].model if isinstance(task, GroupPlan) else task.model
        if model != self.model:
            self.loads.append(model)
            self.model = model
        match task:
            case DrawPlan(prompt=prompt):
                self._obey(prompt, on_step)
                self.done.append(prompt)
                if prompt.startswith("draw"):
                    return self._drawn_for(task)
                if prompt.startswith("square"):
                    self._obey("steps " + "".join(prompt.partition(",")[0].split()[2:] or "0"), on_step)
                    return self._squared(task)
                return Outcome(model="rehearsal", device="cpu", warnings=(str(os.getpid()),))
            case GroupPlan(plans=plans):
                for other in plans:
                    if not other.prompt.startswith("steps"):
                        self._obey(other.prompt, on_step)
                self._obey(plans[0].prompt, on_step)
                self.done.append(" and ".join(one.prompt for one in plans))
                return Outcome(parts=tuple(self._made(one) for one in plans), timings=Timings(total=TOOK))
            case PreparePlan(model=model):
                on_step(Progress(fraction=0.5, message=f"loading {model}"))
                return Outcome(model=model)
            case _:
                raise LayerDiffuseError(f"cannot rehearse {task.kind}")

    def _made(self, plan: DrawPlan) -> Outcome:
        return self._squared(plan) if plan.prompt.startswith("square") else self._drawn_for(plan)

    def _drawn_for(self, plan: DrawPlan) -> Outcome:
        facts = PictureFacts(role="foreground", width=1, height=1, seed=plan.seed, alpha=None)
        files = tuple(
            EncodedFile(name=f"{plan.seed + number}.png", data=b"x" * 10_000, picture=facts)
            for number in range(plan.count)
        )
        return Outcome(model="rehearsal", device="cpu", encoded=files)

    def _squared(self, plan: DrawPlan) -> Outcome:
        import numpy as np
        from PIL import ImageColor

        from layerdiffuse_mcp.images.alpha import alpha_facts
        from layerdiffuse_mcp.images.export import picture_bytes
        from layerdiffuse_mcp.recipes.recipe import recipe_of

        height, width = plan.height, plan.width
        pixels = np.zeros((height, width, 4), np.uint8)
        colour = ImageColor.getrgb(plan.prompt.split(",")[0].split()[1])
        pixels[height // 4 : height * 3 // 4, width // 4 - 8 : width * 3 // 4 - 8] = (*colour, 255)
        files: list[EncodedFile] = []
        for role in ("foreground", "blended") if plan.inputs else ("foreground",):
            facts = PictureFacts(
                role=role, width=width, height=height, seed=plan.seed, alpha=alpha_facts(pixels), verdict="good"
            )
            said = {"recipe": recipe_of(plan, weights={}, device="cpu", dtype="float32") | {"role": role}}
            data = picture_bytes(pixels, plan.format, **said)
            files.append(EncodedFile(name=f"square-{plan.seed}-{role}.{plan.format}", data=data, picture=facts))
            if plan.save_latent:
                files.append(EncodedFile(name=f"square-{plan.seed}-{role}.safetensors", data=b"latent"))
        return Outcome(model="rehearsal", device="cpu", encoded=tuple(files), warnings=("as always",))

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
            case "lost":
                self.lost = True
                raise LayerDiffuseError("The engine failed: an unspecified launch failure.")
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
