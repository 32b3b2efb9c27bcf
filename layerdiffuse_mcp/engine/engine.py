"""The engine's one door: a task goes in, an outcome with encoded pictures comes out.

    engine = Engine(settings)
    [task], inputs = planned.tasks, planned.inputs  # jobs/planner.py: of a request
    outcome = engine.run(task, inputs, print)
    outcome = saved(outcome, settings.output)       # outputs/writer.py: the files of `outcome.encoded`, on disk
    engine.close()

It knows no MCP, no queue and no folder to write to, and decides nothing: a plan names model, files and settings, and
`inputs` the files with the content of given pictures. `report` is its only way to tell of progress. A run is stopped
by raising from it, or sooner by `cancelled`, which is asked all the time (see `cancellation.py`). Models stay in memory
between tasks. Runs one task at a time, in one thread.
"""

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial, singledispatchmethod
from pathlib import Path
from typing import Any

from layerdiffuse_mcp.api.control import REFERENCE, REFERENCE_MASK, control_names
from layerdiffuse_mcp.api.outcome import EXHAUSTED, EncodedFile, Outcome, Timings
from layerdiffuse_mcp.api.plan import (
    DecodePlan,
    DrawPlan,
    EncodePlan,
    GivenPicture,
    GroupPlan,
    Inputs,
    PreparePlan,
    Task,
)
from layerdiffuse_mcp.engine.device.cancellation import asking
from layerdiffuse_mcp.engine.device.memory import is_out_of_memory
from layerdiffuse_mcp.engine.drawing.drawers import drawer_of
from layerdiffuse_mcp.engine.drawing.files import drawing_recipe, encoded, facts_of
from layerdiffuse_mcp.engine.drawing.latents import decode_latent, decode_plain, encode_picture
from layerdiffuse_mcp.engine.model_manager import Extent, ModelManager
from layerdiffuse_mcp.engine.models.additions import additions_of
from layerdiffuse_mcp.engine.pipeline.batch import drawn_size, passes, pixels_of_result, tiles_of
from layerdiffuse_mcp.engine.pipeline.conditions import fitted as fitted_picture
from layerdiffuse_mcp.engine.pipeline.conditions import fitted_mask
from layerdiffuse_mcp.engine.pipeline.previews import previews
from layerdiffuse_mcp.engine.pipeline.progress import DENOISING, REDRAWING, Meter, OnStep
from layerdiffuse_mcp.engine.transparency import latent_file as latents
from layerdiffuse_mcp.engine.transparency.codec import codec_of
from layerdiffuse_mcp.engine.types import DiffusionModel, Edit, LayerImage, Pictures
from layerdiffuse_mcp.errors import ImageError, InvalidRequest, LayerDiffuseError, OutOfMemory
from layerdiffuse_mcp.families.registry import FAMILIES
from layerdiffuse_mcp.families.spec import LatentFormat, Role
from layerdiffuse_mcp.hub import catalog
from layerdiffuse_mcp.hub.licences import UNKNOWN
from layerdiffuse_mcp.images.alpha import Bytes
from layerdiffuse_mcp.images.export import picture_bytes
from layerdiffuse_mcp.images.files import sha256
from layerdiffuse_mcp.images.read import Picture, opened_file, read_picture
from layerdiffuse_mcp.outputs.names import file_name, words_in
from layerdiffuse_mcp.recipes.recipe import BASE, other_weights
from layerdiffuse_mcp.settings import Settings
from layerdiffuse_mcp.text.chunks import count_tokens

LONG_PROMPT = 8 * 75
"""Tokens from which on a prompt's length counts beside the picture's size."""


class Engine:
    """Runs requests on the models of this machine."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._manager = ModelManager(settings)
        self._exhausted = False

    def run(self, task: Task, inputs: Inputs, report: OnStep, cancelled: Callable[[], bool] | None = None) -> Outcome:
        """Do a task; once more with less of the model on the device if its memory runs out.

        Args:
            inputs: the files with the content of the pictures that the task names, by SHA-256.
            report: hears of progress.
            cancelled: whether the task is no longer wanted; it ends soon after with `Cancelled`.

        Raises:
            LayerDiffuseError: of the kind that fits; nothing half done is left on disk, and the engine is ready. Only
                after memory ran out for good may it be left with less than a new process has: its status says so
                (`outcome.EXHAUSTED`).
        """
        with asking(cancelled):
            return self._run_or_relieve(task, inputs, report)

    def _run_or_relieve(self, task: Task, inputs: Inputs, report: OnStep) -> Outcome:
        meter, again = Meter(report), False
        while True:
            try:
                return _noted(self._run(task, inputs, meter), self._manager.reduced())
            except (RuntimeError, OSError, MemoryError) as error:
                if not is_out_of_memory(error):
                    said = str(error).partition("\n")[0]  # CUDA's goes on with advice for those who wrote the kernel
                    raise LayerDiffuseError(f"The engine failed: {type(error).__name__}: {said}") from error
            # only here is the failed run's memory free: the error held its tensors
            self._exhausted = True
            if again or not self._manager.relieve():
                break
            self._exhausted, again = False, True
            meter = Meter(report, meter.reached)
        self._manager.unload()
        raise OutOfMemory(
            f"The request does not fit into the memory of {self._manager.placement.title}. {_smaller(task)}, "
            "close other programs, or set LAYERDIFFUSE_OFFLOAD=layers where it is not yet."
        )

    def unload(self, model: str | None = None) -> list[str]:
        """Drop the model of that name, or all, and give the memory back; the names of those dropped."""
        return self._manager.unload(model)

    def status(self) -> dict[str, Any]:
        """What the engine runs on and what it holds."""
        return self._manager.status() | ({EXHAUSTED: True} if self._exhausted else {})

    def close(self) -> None:
        """Drop all models."""
        self._manager.close()

    @singledispatchmethod
    def _run(self, task: Any, inputs: Inputs, meter: Meter) -> Outcome:
        raise InvalidRequest(f"The engine does not know tasks of the kind {type(task).__name__}.")

    @_run.register
    def _(self, task: DrawPlan, inputs: Inputs, meter: Meter) -> Outcome:
        return self._draw([task], inputs, meter)[0]

    @_run.register
    def _(self, task: GroupPlan, inputs: Inputs, meter: Meter) -> Outcome:
        parts = self._draw(task.plans, inputs, meter)
        once = {name: getattr(parts[0], name) for name in ("model", "device", "dtype", "timings")}
        return Outcome(**once, parts=tuple(part.model_copy(update={"timings": Timings()}) for part in parts))

    def _draw(self, plans: Sequence[DrawPlan], inputs: Inputs, meter: Meter) -> list[Outcome]:
        """Draw plans of one batch (see `plan.batch_key`); an outcome for each."""
        clock = _Clock()
        given = {name: self._read(picture, inputs) for name, picture in plans[0].pictures.items()}
        for name in given.keys() & {"mask", REFERENCE_MASK}:
            _check_mask(name, given[name].rgba)
        with clock("load"):
            model = self._model(plans[0].model, meter, partial(_extent, plans), plans[0])
        as_drawn = [plan.as_drawn for plan in plans]
        width, height = drawn_size(as_drawn[0], model.latent)
        with clock("draw"), previews(self._settings, model.latent) as show:
            pictures = _pictures(plans[0], (width, height), given)
            drawn = drawer_of(model.spec)(as_drawn, model, pictures, meter, show)
        clock.note("denoise", meter.spent.get(DENOISING, 0.0) + meter.spent.get(REDRAWING, 0.0))
        with clock("load"):
            model.identify(plans[0].methods, meter.report)
        with clock("write"):
            meter.report("writing")
            licences = self._licences(model)
            files = [encoded(plan, model, layers, licences) for plan, layers in zip(plans, drawn, strict=True)]
        return [
            self._outcome(
                model,
                clock,
                encoded=tuple(made),
                warnings=(
                    *plan.notes,
                    *other_weights(plan.drawn_with, model.weights),
                    *_notes(given),
                ),
                licences=licences,
                recipe=drawing_recipe(plan, model, licences),
            )
            for plan, made in zip(plans, files, strict=True)
        ]

    @_run.register
    def _(self, task: DecodePlan, inputs: Inputs, meter: Meter) -> Outcome:
        clock = _Clock()
        saved = latents.read_latent(inputs[task.latent.sha256])
        with clock("load"):
            model = self._model(task.model, meter, lambda _: Extent(0, 0, saved.width * saved.height))
        with clock("draw"):
            pixels = decode_plain(model, saved) if task.plain else decode_latent(model, saved, meter)
        with clock("write"):
            words = task.name or words_in(Path(task.latent.name))
            name = file_name(words, saved.seed, "decoded", f".{task.format}")
            picture = facts_of(LayerImage("foreground", saved.seed, pixels, saved.latent))
            file = EncodedFile(name=name, data=picture_bytes(pixels, task.format), picture=picture)
        return self._outcome(model, clock, encoded=(file,))

    @_run.register
    def _(self, task: EncodePlan, inputs: Inputs, meter: Meter) -> Outcome:
        clock = _Clock()
        picture = self._read(task.image, inputs)
        height, width = picture.rgba.shape[:2]
        with clock("load"):
            model = self._model(task.model, meter, lambda _: Extent(0, 0, width * height))
        with clock("draw"):
            latent = encode_picture(model, picture.rgba, meter)
        with clock("write"):
            saved = latents.SavedLatent(latent, width, height, model.spec.id, model.name, 0)
            name = file_name(task.name or words_in(Path(task.image.name)), None, "latent", latents.SUFFIX)
            file = EncodedFile(name=name, data=latents.latent_bytes(saved))
        return self._outcome(model, clock, encoded=(file,), warnings=picture.notes)

    @_run.register
    def _(self, task: PreparePlan, inputs: Inputs, meter: Meter) -> Outcome:
        clock = _Clock()
        with clock("load"):
            entry = catalog.find(task.model, self._settings)
            for name in FAMILIES[entry.family].layer_files(task.methods) if entry.family else ():
                catalog.layer_file(entry, name, self._settings)
            model = self._manager.get(entry, meter.report)
            codec_of(model).load()
        return self._outcome(model, clock)

    def _model(
        self, name: str, meter: Meter, extent: Callable[[LatentFormat], Extent], plan: DrawPlan | None = None
    ) -> DiffusionModel:
        """The model in memory, with room for what is to be computed, and beside it what a plan names."""
        entry = catalog.find(name, self._settings)
        if plan is None:
            return self._manager.get(entry, meter.report, extent)
        loras, additions = [lora.name for lora in plan.loras], additions_of(plan, self._settings)
        return self._manager.get(entry, meter.report, extent, loras, additions, plan.inversions)

    def _read(self, picture: GivenPicture, inputs: Inputs) -> Picture:
        """A given picture, which is what it was when the plan was made, or an ImageError."""
        with opened_file(inputs[picture.sha256]) as file:
            if sha256(file) != picture.sha256:
                raise ImageError(f"{picture.name} was changed after it was given. Repeat the call.")
            return read_picture(file, self._settings.max_pixels)

    def _licences(self, model: DiffusionModel) -> dict[str, str]:
        """Those of the files that a drawing was made with, by the names of `Model.weights`."""
        entry = catalog.find(model.name, self._settings)
        known = {BASE: entry.licence, **catalog.licences(entry, self._settings)}
        return {name: known.get(name) or UNKNOWN for name in model.weights}

    def _outcome(self, model: DiffusionModel, clock: "_Clock", **facts: Any) -> Outcome:
        placement = model.placement
        return Outcome(
            model=model.name,
            device=placement.title,
            dtype=str(placement.dtype).removeprefix("torch."),
            timings=clock.timings(),
            **facts,
        )


class _Clock:
    """Seconds by stage, for the outcome."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._spent: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Generator[None]:
        begun = time.monotonic()
        yield
        self.note(stage, time.monotonic() - begun)

    def note(self, stage: str, seconds: float) -> None:
        """Add what was measured elsewhere."""
        self._spent[stage] = self._spent.get(stage, 0.0) + seconds

    def timings(self) -> Timings:
        """What was spent so far, rounded to milliseconds."""
        spent = {**self._spent, "total": time.monotonic() - self._begun}
        return Timings(**{stage: round(seconds, 3) for stage, seconds in spent.items()})


def _smaller(task: Task) -> str:
    """What would let a task take less memory."""
    match task:
        case GroupPlan(plans=plans):
            return _smaller(max(plans, key=_tokens))
        case DrawPlan() if (tokens := _tokens(task)) > LONG_PROMPT:
            return f"Shorten the prompts, the longest of which has {tokens} tokens, lower width and height or count"
        case DrawPlan():
            return "Lower width and height or count"
        case EncodePlan():
            return "Give a smaller picture"
        case _:
            return "Use a smaller model or latent"


def _tokens(plan: DrawPlan) -> int:
    """Of the longest prompt of a plan."""
    return max(map(count_tokens, (plan.prompt, plan.negative_prompt, *plan.layer_prompts.values())))


def _pictures(plan: DrawPlan, size: tuple[int, int], pictures: dict[str, Picture]) -> Pictures:
    """The pictures as a drawer takes them: the one to edit and its mask at the size (width, height) that is drawn."""
    layers: dict[Role, Bytes] = {role: pictures[role].rgba for role in plan.inputs}
    referred = [pictures[name].rgba if name in pictures else None for name in (REFERENCE, REFERENCE_MASK)]
    control = [pictures[name].rgba for name in control_names(len(plan.control))]
    if "image" not in pictures:
        return Pictures(layers, None, control, *referred)
    if plan.kept:
        size = plan.width, plan.height
    image = fitted_picture(pictures["image"].rgba, *size, plan.resize_mode)
    masks = [fitted_mask(pictures["mask"].rgba, *size, plan.resize_mode)] if "mask" in pictures else []
    return Pictures(layers, Edit([image], masks), control, *referred)


def _check_mask(name: str, rgba: Bytes) -> None:
    """Refuse a mask by which nothing would happen."""
    if not (rgba[..., :3].any(axis=-1) & (rgba[..., 3] > 0)).any():
        raise ImageError(
            f"The {name} picture is black or transparent everywhere, so nothing would happen. Make it white where "
            "something is to, or leave it out."
        )


def _extent(plans: Sequence[DrawPlan], latent: LatentFormat) -> Extent:
    """What plans of one batch compute at once: the most of all their passes."""
    drawn = plans[0].as_drawn
    tiles = [tiles_of(one, latent).tile for one in passes(drawn)]
    return Extent(
        sum(plan.count for plan in plans),
        max(pixels_of_result(one, latent) for one in passes(drawn)),
        max(width * height for width, height in tiles),
        [stage.method for stage in drawn.stages],
    )


def _noted(outcome: Outcome, notes: tuple[str, ...]) -> Outcome:
    """The outcome, and those of a group that it holds, with `notes` before its warnings."""
    parts = tuple(_noted(part, notes) for part in outcome.parts)
    return outcome.model_copy(update={"warnings": (*notes, *outcome.warnings), "parts": parts})


def _notes(pictures: dict[str, Picture]) -> list[str]:
    return [f"{name} picture: {note}" for name, picture in pictures.items() for note in picture.notes]
