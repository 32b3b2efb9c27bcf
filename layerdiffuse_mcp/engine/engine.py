"""The engine's one door: a request goes in, an outcome comes out, pictures are on disk.

    engine = Engine(settings)
    outcome = engine.run(GenerateRequest(prompt="a red apple"), on_step=print)
    engine.close()

It knows no MCP and no queue. `on_step` is its only way to report, and raising from it is the only way to
stop it. Models stay in memory between requests. Runs one request at a time, in one thread.
"""

import time
from collections.abc import Collection, Generator, Sequence
from contextlib import contextmanager
from functools import singledispatchmethod
from pathlib import Path
from typing import Any

from layerdiffuse_mcp import infotext
from layerdiffuse_mcp.engine import latents
from layerdiffuse_mcp.engine.chunks import count_tokens
from layerdiffuse_mcp.engine.conditions import fitted, fitted_mask
from layerdiffuse_mcp.engine.generate import Drawn, Given, decode_rgba, draw_size, generate, pixels_of_result
from layerdiffuse_mcp.engine.manager import ModelManager
from layerdiffuse_mcp.engine.model import Model
from layerdiffuse_mcp.engine.placement import is_out_of_memory
from layerdiffuse_mcp.engine.previews import previews
from layerdiffuse_mcp.engine.progress import DECODED_VIEW, DOWNLOADING, Meter, OnStep
from layerdiffuse_mcp.engine.transparency import VIEWS, transparent_latent
from layerdiffuse_mcp.errors import InvalidRequest, LayerDiffuseError, OutOfMemory
from layerdiffuse_mcp.hub import catalog
from layerdiffuse_mcp.hub.download import prepare
from layerdiffuse_mcp.hub.entries import LoraEntry, ModelEntry, printable
from layerdiffuse_mcp.images.alpha import alpha_facts
from layerdiffuse_mcp.images.png import write_png
from layerdiffuse_mcp.images.read import Picture, read_picture
from layerdiffuse_mcp.methods import METHODS
from layerdiffuse_mcp.naming import output_path
from layerdiffuse_mcp.outcome import ImageResult, Outcome, Timings
from layerdiffuse_mcp.parameters import infotext_of
from layerdiffuse_mcp.plan import methods_of, resolve
from layerdiffuse_mcp.recipes import BASE, other_weights, recipe_of
from layerdiffuse_mcp.requests import (
    DecodeRequest,
    EncodeRequest,
    GenerateRequest,
    GroupRequest,
    PrepareRequest,
    Request,
    StatusRequest,
    UnloadRequest,
)
from layerdiffuse_mcp.settings import Settings

MAX_TOKENS = 4096
NO_TRANSPARENCY = (
    "No transparency came out of {role} (seed {seed}): the picture is opaque. Try another seed, name only the subject "
    "and no background in the prompt, or use a base that can draw a plain grey background."
)


class Engine:
    """Runs requests on the models of this machine."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._manager = ModelManager(settings)

    def run(self, request: Request, on_step: OnStep) -> Outcome:
        """Do what a request asks for; once more with less of the model on the device if its memory runs out.

        Raises:
            LayerDiffuseError: of the kind that fits; nothing half done is left on disk, and the engine is ready.
        """
        meter, notes = Meter(on_step), ()
        while True:
            try:
                return _noted(self._run(request, meter), notes)
            except (RuntimeError, OSError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise LayerDiffuseError(f"The engine failed: {type(error).__name__}: {error}") from error
            # only here is the failed run's memory free: the error held its tensors
            note = None if notes else self._manager.relieve()
            if note is None:
                break
            meter, notes = Meter(on_step, meter.reached), (note,)
        self._manager.unload()
        raise OutOfMemory(
            f"The request does not fit into the memory of {self._manager.placement.title}. Lower width and height or "
            "count, close other programs, or set LAYERDIFFUSE_OFFLOAD=layers where it is not yet."
        )

    def close(self) -> None:
        """Drop all models."""
        self._manager.close()

    @singledispatchmethod
    def _run(self, request: Any, meter: Meter) -> Outcome:
        raise InvalidRequest(f"The engine does not know requests of the kind {type(request).__name__}.")

    @_run.register
    def _(self, request: GenerateRequest, meter: Meter) -> Outcome:
        return self._generate([request], meter)[0]

    @_run.register
    def _(self, request: GroupRequest, meter: Meter) -> Outcome:
        return Outcome(parts=tuple(self._generate(request.requests, meter)))

    def _generate(self, requests: Sequence[GenerateRequest], meter: Meter) -> list[Outcome]:
        """Draw requests that can be drawn as one batch (see `requests.batch_key`); an outcome for each."""
        clock = _Clock()
        for request in requests:
            _check_length(request)
        given = self._read(requests[0])
        with clock("load"):
            model = self._model(requests[0].model, meter, requests[0])
        first = next(iter(given.values()), None)
        size = None if first is None else (first.rgba.shape[1], first.rgba.shape[0])
        base = model.checkpoint
        plans = [resolve(one, base.family, base.native_size, size, base.settings.get("advice")) for one in requests]
        plans = [plan.model_copy(update={"model": model.entry.name, "drawn_with": None}) for plan in plans]
        width, height = draw_size(plans[0])
        count = sum(plan.count for plan in plans)
        self._manager.fit(model, count * pixels_of_result(plans[0]), width * height)
        with clock("draw"), previews(self._settings, base) as show:
            drawn = generate(plans, model, _given(plans[0], given), meter, show)
        with clock("load"):
            model.identify(methods_of(plans[0], model.family), meter.tell)
        with clock("write"):
            meter.tell("writing")
            written = [self._write(plan, model, layers) for plan, layers in zip(plans, drawn, strict=True)]
        return [
            self._outcome(
                model,
                clock,
                images=tuple(images),
                latents=tuple(files),
                warnings=(*other_weights(request.drawn_with, model.weights), *_notes(given), *_warnings(plan, images)),
                recipe=self._recipe(plan, model),
            )
            for request, plan, (images, files) in zip(requests, plans, written, strict=True)
        ]

    @_run.register
    def _(self, request: DecodeRequest, meter: Meter) -> Outcome:
        clock = _Clock()
        saved = latents.read_latent(request.latent)
        with clock("load"):
            model = self._model(request.model or saved.model, meter)
        if saved.family not in (None, model.family):
            raise InvalidRequest(
                f"{request.latent.name} is a latent of a {saved.family} model, and {model.entry.name} is "
                f"{model.family}. Name a {saved.family} model."
            )
        self._manager.fit(model, 0, saved.width * saved.height)
        meter.expect(len(VIEWS) * DECODED_VIEW)
        steps = meter.steps("decoding", len(VIEWS), DECODED_VIEW)
        with clock("draw"):
            pixels = decode_rgba(model, saved.latent, steps.next)[: saved.height, : saved.width]
        with clock("write"):
            path = output_path(self._settings.output, request.latent.stem, saved.seed, "decoded")
            image = _result(write_png(path, pixels), pixels, "foreground", saved.seed)
        return self._outcome(model, clock, images=(image,), warnings=_transparency_warnings([image]))

    @_run.register
    def _(self, request: EncodeRequest, meter: Meter) -> Outcome:
        clock = _Clock()
        picture = read_picture(request.image, self._settings.max_pixels)
        with clock("load"):
            model = self._model(request.model, meter)
        height, width = picture.rgba.shape[:2]
        self._manager.fit(model, 0, width * height)
        with clock("draw"):
            latent = transparent_latent(model.vae, model.encoder, latents.padded(picture.rgba))[0]
        with clock("write"):
            path = output_path(self._settings.output, request.image.stem, 0, "latent").with_suffix(".safetensors")
            saved = latents.SavedLatent(latent.cpu(), width, height, model.family, model.entry.name, 0)
            path = latents.write_latent(path, saved)
        return self._outcome(model, clock, latents=(path,), warnings=picture.notes)

    @_run.register
    def _(self, request: PrepareRequest, meter: Meter) -> Outcome:
        clock = _Clock()
        with clock("load"):
            entry = catalog.find_any(request.model, self._settings)
            if isinstance(entry, LoraEntry):
                prepare(entry.name, self._settings, meter.portion(1.0))
                return Outcome(model=entry.name, timings=clock.timings())
            methods = catalog.methods_for(entry, request.task)
            entry = self._fetched(entry, methods, meter)
            for method in methods:
                catalog.layer_file(entry, METHODS[method].file, self._settings)
            model = self._manager.get(entry, meter.tell)
            _ = model.decoder, model.encoder
        return self._outcome(model, clock)

    @_run.register
    def _(self, request: UnloadRequest, meter: Meter) -> Outcome:
        dropped = self._manager.unload(request.model)
        if request.model is not None and not dropped:  # another name of it
            dropped = self._manager.unload(catalog.find(request.model, self._settings).name)
        what = "no model was" if request.model is None else f"{printable(request.model, 80)} was not"
        notes = () if dropped else (f"Nothing was unloaded: {what} in memory.",)
        return Outcome(status={"unloaded": dropped, **self._manager.status()}, warnings=notes)

    @_run.register
    def _(self, request: StatusRequest, meter: Meter) -> Outcome:
        return Outcome(status=self._manager.status())

    def _model(self, name: str | None, meter: Meter, request: GenerateRequest | None = None) -> Model:
        """The model in memory; what it lacks for the request is fetched first if a generation may do that."""
        entry = catalog.find(name, self._settings)
        if self._settings.auto_download and entry.family:
            methods = methods_of(request, entry.family) if request else ()
            if catalog.missing(entry, self._settings, methods):
                entry = self._fetched(entry, methods, meter)
        return self._manager.get(entry, meter.tell)

    def _fetched(self, entry: ModelEntry, methods: Collection[str], meter: Meter) -> ModelEntry:
        """The model when all of its files are here: those that are not are downloaded."""
        share = DOWNLOADING if catalog.missing(entry, self._settings, methods) else 0.0
        prepare(entry, self._settings, meter.portion(share), methods=methods)
        return catalog.find(entry.name, self._settings)

    def _read(self, request: GenerateRequest) -> dict[str, Picture]:
        files: dict[str, Path | None] = {"image": request.image, **request.inputs, "mask": request.mask}
        return {name: read_picture(path, self._settings.max_pixels) for name, path in files.items() if path is not None}

    def _write(self, plan: GenerateRequest, model: Model, drawn: list[Drawn]) -> tuple[list[ImageResult], list[Path]]:
        images: list[ImageResult] = []
        files: list[Path] = []
        for one in drawn:
            alone = plan.model_copy(update={"seed": one.seed, "count": 1, "save_latent": False})
            path = output_path(self._settings.output, plan.prompt or one.role, one.seed, one.role)
            text = infotext.format(infotext_of(alone, model_hash=model.weights[BASE]))
            recipe = self._recipe(alone, model) | {"role": one.role}
            path = write_png(path, one.pixels, recipe=recipe, parameters=text)
            images.append(_result(path, one.pixels, one.role, one.seed))
            if plan.save_latent:
                height, width = one.pixels.shape[:2]
                saved = latents.SavedLatent(one.latent, width, height, model.family, model.entry.name, one.seed)
                files.append(latents.write_latent(path.with_suffix(".safetensors"), saved))
        return images, files

    def _recipe(self, plan: GenerateRequest, model: Model) -> dict[str, Any]:
        placement = model.placement
        return recipe_of(
            plan,
            weights=model.weights,
            device=placement.device.type,
            dtype=str(placement.dtype).removeprefix("torch."),
        )

    def _outcome(self, model: Model, clock: "_Clock", **facts: Any) -> Outcome:
        return Outcome(
            model=model.entry.name,
            device=model.placement.title,
            dtype=str(model.placement.dtype).removeprefix("torch."),
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
        self._spent[stage] = self._spent.get(stage, 0.0) + time.monotonic() - begun

    def timings(self) -> Timings:
        """What was spent so far, rounded to milliseconds."""
        spent = {**self._spent, "total": time.monotonic() - self._begun}
        return Timings(**{stage: round(seconds, 3) for stage, seconds in spent.items()})


def _check_length(request: GenerateRequest) -> None:
    """Refuse prompts that would fill the memory with text: time and memory grow with every 75 tokens."""
    for name, text in {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        **request.layer_prompts,
    }.items():
        if (count := count_tokens(text)) > MAX_TOKENS:
            raise InvalidRequest(f"{name} has {count} tokens; at most {MAX_TOKENS} are allowed. Shorten it.")


def _given(plan: GenerateRequest, pictures: dict[str, Picture]) -> Given:
    """The pictures as a generation takes them: the one to edit and its mask at the size that is drawn."""
    width, height = draw_size(plan)
    image, mask = pictures.get("image"), pictures.get("mask")
    return Given(
        layers={role: pictures[role].rgba for role in plan.inputs},
        image=None if image is None else fitted(image.rgba, width, height, plan.resize_mode),
        mask=None if mask is None else fitted_mask(mask.rgba, width, height, plan.resize_mode),
    )


def _result(path: Path, pixels: Any, role: Any, seed: int) -> ImageResult:
    height, width, channels = pixels.shape
    facts = alpha_facts(pixels) if channels == 4 else None
    return ImageResult(role=role, path=path, width=width, height=height, seed=seed, alpha=facts)


def _noted(outcome: Outcome, notes: tuple[str, ...]) -> Outcome:
    """The outcome, and those of a group that it holds, with `notes` before its warnings."""
    parts = tuple(_noted(part, notes) for part in outcome.parts)
    return outcome.model_copy(update={"warnings": (*notes, *outcome.warnings), "parts": parts})


def _notes(pictures: dict[str, Picture]) -> list[str]:
    return [f"{name} picture: {note}" for name, picture in pictures.items() for note in picture.notes]


def _warnings(plan: GenerateRequest, images: list[ImageResult]) -> list[str]:
    warnings = list(_transparency_warnings(images))
    for stage in plan.stages or ():
        if stage.method in ("layer_xl_fgble2bg", "layer_xl_bgble2fg") and stage.sampler.startswith("DPM++"):
            warnings.append(f"{stage.sampler} leaves artefacts with {stage.method}: Euler a or UniPC is advised.")
    return warnings


def _transparency_warnings(images: list[ImageResult]) -> tuple[str, ...]:
    return tuple(
        NO_TRANSPARENCY.format(role=image.role, seed=image.seed)
        for image in images
        if image.alpha is not None and not image.alpha.has_transparency
    )
