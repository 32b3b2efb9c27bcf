"""The engine's one door: a request goes in, an outcome with encoded pictures comes out.

    engine = Engine(settings)
    outcome = engine.run(GenerateRequest(prompt="a red apple"), on_step=print)
    outcome = saved(outcome, settings.output)       # outputs/writer.py: the files of `outcome.encoded`, on disk
    engine.close()

It knows no MCP, no queue and no folder to write to. `on_step` is its only way to report. A run is stopped by raising
from it, or sooner by `cancelled`, which is asked all the time (see `cancellation.py`). Models stay in memory between
requests. Runs one request at a time, in one thread.
"""

import time
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import contextmanager
from functools import singledispatchmethod
from typing import Any

from layerdiffuse_mcp.api.fields import MAX_SIZE
from layerdiffuse_mcp.api.outcome import EXHAUSTED, EncodedFile, Outcome, PictureFacts, Timings
from layerdiffuse_mcp.api.plan import methods_of, resolve
from layerdiffuse_mcp.api.requests import (
    DecodeRequest,
    EncodeRequest,
    GenerateRequest,
    GroupRequest,
    PrepareRequest,
    Request,
    StatusRequest,
    UnloadRequest,
)
from layerdiffuse_mcp.engine.device.cancellation import asking
from layerdiffuse_mcp.engine.device.memory import is_out_of_memory
from layerdiffuse_mcp.engine.drawing import sampled
from layerdiffuse_mcp.engine.drawing.latents import decode_latent, encode_picture
from layerdiffuse_mcp.engine.model_manager import ModelManager
from layerdiffuse_mcp.engine.models.stable_diffusion import StableDiffusion
from layerdiffuse_mcp.engine.pipeline.batch import drawn_size, pixels_of_result
from layerdiffuse_mcp.engine.pipeline.conditions import fitted, fitted_mask
from layerdiffuse_mcp.engine.pipeline.latents import Edit
from layerdiffuse_mcp.engine.pipeline.previews import previews
from layerdiffuse_mcp.engine.pipeline.progress import DOWNLOADING, Meter, OnStep
from layerdiffuse_mcp.engine.transparency import latent_file as latents
from layerdiffuse_mcp.engine.transparency.codec import AlphaCodec
from layerdiffuse_mcp.engine.types import LayerImage
from layerdiffuse_mcp.errors import ImageError, InvalidRequest, LayerDiffuseError, OutOfMemory
from layerdiffuse_mcp.families.entries import LoraEntry, ModelEntry
from layerdiffuse_mcp.families.registry import METHODS
from layerdiffuse_mcp.families.spec import Role
from layerdiffuse_mcp.hub import catalog
from layerdiffuse_mcp.hub.download import prepare
from layerdiffuse_mcp.images.alpha import Bytes, alpha_facts
from layerdiffuse_mcp.images.files import name_of, sha256
from layerdiffuse_mcp.images.png import png_bytes
from layerdiffuse_mcp.images.read import Picture, opened_file, read_picture
from layerdiffuse_mcp.outputs.names import file_name
from layerdiffuse_mcp.recipes import infotext
from layerdiffuse_mcp.recipes.a1111 import infotext_of
from layerdiffuse_mcp.recipes.recipe import BASE, GivenPicture, other_weights, recipe_of
from layerdiffuse_mcp.settings import Settings
from layerdiffuse_mcp.text.chunks import count_tokens
from layerdiffuse_mcp.wording import printable

MAX_TOKENS = 4096
LONG_PROMPT = 8 * 75
"""Tokens from which on a prompt's length counts beside the picture's size."""
NO_TRANSPARENCY = (
    "No transparency came out of {role} (seed {seed}): the picture is opaque. Try another seed, name only the subject "
    "and no background in the prompt, or use a base that can draw a plain grey background."
)


class Engine:
    """Runs requests on the models of this machine."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._manager = ModelManager(settings)
        self._exhausted = False

    def run(self, request: Request, on_step: OnStep, cancelled: Callable[[], bool] | None = None) -> Outcome:
        """Do what a request asks for; once more with less of the model on the device if its memory runs out.

        Args:
            on_step: hears of progress.
            cancelled: whether the request is no longer wanted; it ends soon after with `Cancelled`.

        Raises:
            LayerDiffuseError: of the kind that fits; nothing half done is left on disk, and the engine is ready. Only
                after memory ran out for good may it be left with less than a new process has: its status says so
                (`outcome.EXHAUSTED`).
        """
        with asking(cancelled):
            return self._run_or_relieve(request, on_step)

    def _run_or_relieve(self, request: Request, on_step: OnStep) -> Outcome:
        meter, notes = Meter(on_step), ()
        while True:
            try:
                return _noted(self._run(request, meter), notes)
            except (RuntimeError, OSError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise LayerDiffuseError(f"The engine failed: {type(error).__name__}: {error}") from error
            # only here is the failed run's memory free: the error held its tensors
            self._exhausted = True
            note = None if notes else self._manager.relieve()
            if note is None:
                break
            self._exhausted = False
            meter, notes = Meter(on_step, meter.reached), (note,)
        self._manager.unload()
        raise OutOfMemory(
            f"The request does not fit into the memory of {self._manager.placement.title}. {_smaller(request)}, "
            "close other programs, or set LAYERDIFFUSE_OFFLOAD=layers where it is not yet."
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
        given, origins = self._read(requests[0])
        with clock("load"):
            model = self._model(requests[0].model, meter, requests[0])
        first = next(iter(given.values()), None)
        size = None if first is None else (first.rgba.shape[1], first.rgba.shape[0])
        base = model.components.checkpoint
        plans = [resolve(one, base.family, base.native_size, size, base.settings.get("advice")) for one in requests]
        plans = [plan.model_copy(update={"model": model.name, "drawn_with": None}) for plan in plans]
        width, height = drawn_size(plans[0], model.latent)
        count = sum(plan.count for plan in plans)
        self._manager.fit(model, count * pixels_of_result(plans[0], model.latent), width * height)
        with clock("draw"), previews(self._settings, model.latent) as show:
            drawn = sampled.draw(plans, model, _pictures(plans[0], (width, height), given), meter, show)
        with clock("load"):
            model.identify(methods_of(plans[0], model.spec.id), meter.report)
        with clock("write"):
            meter.report("writing")
            encoded = [self._encoded(plan, model, layers, origins) for plan, layers in zip(plans, drawn, strict=True)]
        return [
            self._outcome(
                model,
                clock,
                encoded=tuple(files),
                warnings=(
                    *plan.notes,
                    *other_weights(request.drawn_with, model.weights),
                    *_notes(given),
                    *_warnings(plan, files),
                ),
                recipe=self._recipe(plan, model, origins),
            )
            for request, plan, files in zip(requests, plans, encoded, strict=True)
        ]

    @_run.register
    def _(self, request: DecodeRequest, meter: Meter) -> Outcome:
        clock = _Clock()
        saved = latents.read_latent(request.latent)
        with clock("load"):
            model = self._model(request.model or saved.model, meter)
        if saved.family not in (None, model.spec.id):
            raise InvalidRequest(
                f"{request.latent.name} is a latent of a {saved.family} model, and {model.name} is "
                f"{model.spec.id}. Name a {saved.family} model."
            )
        self._manager.fit(model, 0, saved.width * saved.height)
        with clock("draw"):
            pixels = decode_latent(model, saved, meter)
        with clock("write"):
            name = file_name(request.latent.stem, saved.seed, "decoded")
            picture = _facts(pixels, "foreground", saved.seed)
            file = EncodedFile(name=name, data=png_bytes(pixels), picture=picture)
        return self._outcome(model, clock, encoded=(file,), warnings=_transparency_warnings([file]))

    @_run.register
    def _(self, request: EncodeRequest, meter: Meter) -> Outcome:
        clock = _Clock()
        picture = read_picture(request.image, min(self._settings.max_pixels, MAX_SIZE**2))
        height, width = picture.rgba.shape[:2]
        if max(height, width) > MAX_SIZE:
            raise ImageError(
                f"{request.image.name} has {width}x{height} pixels; at most {MAX_SIZE} a side can be encoded. "
                "Give a smaller copy."
            )
        with clock("load"):
            model = self._model(request.model, meter)
        self._manager.fit(model, 0, width * height)
        with clock("draw"):
            latent = encode_picture(model, picture.rgba, meter)
        with clock("write"):
            saved = latents.SavedLatent(latent, width, height, model.spec.id, model.name, 0)
            name = file_name(request.image.stem, 0, "latent", latents.SUFFIX)
            file = EncodedFile(name=name, data=latents.latent_bytes(saved))
        return self._outcome(model, clock, encoded=(file,), warnings=picture.notes)

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
            model = self._manager.get(entry, meter.report)
            codec = AlphaCodec(model)
            _ = codec.decoder, codec.encoder
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
        return Outcome(status=self._manager.status() | ({EXHAUSTED: True} if self._exhausted else {}))

    def _model(self, name: str | None, meter: Meter, request: GenerateRequest | None = None) -> StableDiffusion:
        """The model in memory; what it lacks for the request is fetched first if a generation may do that."""
        entry = catalog.find(name, self._settings)
        if self._settings.auto_download and entry.family:
            methods = methods_of(request, entry.family) if request else ()
            if catalog.missing(entry, self._settings, methods):
                entry = self._fetched(entry, methods, meter)
        loras = [tag.name for tag in sampled.lora_tags(request)] if request else []
        return self._manager.get(entry, meter.report, loras)

    def _fetched(self, entry: ModelEntry, methods: Collection[str], meter: Meter) -> ModelEntry:
        """The model when all of its files are here: those that are not are downloaded."""
        share = DOWNLOADING if catalog.missing(entry, self._settings, methods) else 0.0
        prepare(entry, self._settings, meter.portion(share), methods=methods)
        return catalog.find(entry.name, self._settings)

    def _read(self, request: GenerateRequest) -> tuple[dict[str, Picture], dict[str, GivenPicture]]:
        """The pictures of a request and what its recipe says of each; every file is opened once."""
        pictures: dict[str, Picture] = {}
        origins: dict[str, GivenPicture] = {}
        for name, path in request.pictures.items():
            with opened_file(path) as file:
                origins[name] = GivenPicture(name=name_of(path), sha256=sha256(file), bytes=file.seek(0, 2))
                pictures[name] = read_picture(file, self._settings.max_pixels)
        return pictures, origins

    def _encoded(
        self, plan: GenerateRequest, model: StableDiffusion, drawn: list[LayerImage], origins: dict[str, GivenPicture]
    ) -> list[EncodedFile]:
        """A plan's pictures, each with the recipe that draws it alone inside, and its latents if they are wanted."""
        files: list[EncodedFile] = []
        for one in drawn:
            alone = plan.model_copy(update={"seed": one.seed, "count": 1, "save_latent": False})
            text = infotext.format(infotext_of(alone, model_hash=model.weights[BASE]))
            recipe = self._recipe(alone, model, origins) | {"role": one.role}
            data = png_bytes(one.pixels, recipe=recipe, parameters=text)
            words = plan.prompt or one.role
            picture = _facts(one.pixels, one.role, one.seed)
            files.append(EncodedFile(name=file_name(words, one.seed, one.role), data=data, picture=picture))
            if plan.save_latent:
                saved = latents.SavedLatent(
                    one.latent, picture.width, picture.height, model.spec.id, model.name, one.seed
                )
                name = file_name(words, one.seed, one.role, latents.SUFFIX)
                files.append(EncodedFile(name=name, data=latents.latent_bytes(saved)))
        return files

    def _recipe(
        self, plan: GenerateRequest, model: StableDiffusion, origins: dict[str, GivenPicture]
    ) -> dict[str, Any]:
        placement = model.placement
        return recipe_of(
            plan,
            pictures=origins,
            weights=model.weights,
            device=placement.device.type,
            dtype=str(placement.dtype).removeprefix("torch."),
        )

    def _outcome(self, model: StableDiffusion, clock: "_Clock", **facts: Any) -> Outcome:
        return Outcome(
            model=model.name,
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


def _smaller(request: Request) -> str:
    """What would let a request take less memory."""
    match request:
        case GroupRequest(requests=requests):
            return _smaller(max(requests, key=_tokens))
        case GenerateRequest() if (tokens := _tokens(request)) > LONG_PROMPT:
            return f"Shorten the prompts, the longest of which has {tokens} tokens, lower width and height or count"
        case GenerateRequest():
            return "Lower width and height or count"
        case EncodeRequest():
            return "Give a smaller picture"
        case _:
            return "Use a smaller model or latent"


def _tokens(request: GenerateRequest) -> int:
    """Of the longest prompt of a request."""
    return max(map(count_tokens, (request.prompt, request.negative_prompt, *request.layer_prompts.values())))


def _check_length(request: GenerateRequest) -> None:
    """Refuse prompts that would fill the memory with text: time and memory grow with every 75 tokens."""
    for name, text in {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        **request.layer_prompts,
    }.items():
        if (count := count_tokens(text)) > MAX_TOKENS:
            raise InvalidRequest(f"{name} has {count} tokens; at most {MAX_TOKENS} are allowed. Shorten it.")


def _pictures(plan: GenerateRequest, size: tuple[int, int], pictures: dict[str, Picture]) -> sampled.Pictures:
    """The pictures as a drawer takes them: the one to edit and its mask at the size (width, height) that is drawn."""
    layers: dict[Role, Bytes] = {role: pictures[role].rgba for role in plan.inputs}
    if "image" not in pictures:
        return sampled.Pictures(layers)
    image = fitted(pictures["image"].rgba, *size, plan.resize_mode)
    mask = fitted_mask(pictures["mask"].rgba, *size, plan.resize_mode) if "mask" in pictures else None
    return sampled.Pictures(layers, Edit(image, mask))


def _facts(pixels: Any, role: Any, seed: int) -> PictureFacts:
    height, width, channels = pixels.shape
    alpha = alpha_facts(pixels) if channels == 4 else None
    return PictureFacts(role=role, width=width, height=height, seed=seed, alpha=alpha)


def _noted(outcome: Outcome, notes: tuple[str, ...]) -> Outcome:
    """The outcome, and those of a group that it holds, with `notes` before its warnings."""
    parts = tuple(_noted(part, notes) for part in outcome.parts)
    return outcome.model_copy(update={"warnings": (*notes, *outcome.warnings), "parts": parts})


def _notes(pictures: dict[str, Picture]) -> list[str]:
    return [f"{name} picture: {note}" for name, picture in pictures.items() for note in picture.notes]


def _warnings(plan: GenerateRequest, files: list[EncodedFile]) -> list[str]:
    warnings = list(_transparency_warnings(files))
    for stage in plan.stages or ():
        if stage.method in ("layer_xl_fgble2bg", "layer_xl_bgble2fg") and stage.sampler.startswith("DPM++"):
            warnings.append(f"{stage.sampler} leaves artefacts with {stage.method}: Euler a or UniPC is advised.")
    return warnings


def _transparency_warnings(files: list[EncodedFile]) -> tuple[str, ...]:
    return tuple(
        NO_TRANSPARENCY.format(role=file.picture.role, seed=file.picture.seed)
        for file in files
        if file.picture is not None and file.picture.alpha is not None and not file.picture.alpha.has_transparency
    )
