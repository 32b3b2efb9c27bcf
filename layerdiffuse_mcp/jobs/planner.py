"""From a request to its tasks: everything is decided, and whatever can be refused is refused, before anything waits.

    planned = plan(GenerateRequest(prompt="a red apple"), settings)     # in a thread: it reads headers and hashes
    job = jobs.submit(planned)

It knows the catalogue, the headers of files, tokens and the sizes of pictures; no torch, no weights, no queue. Every
given file is opened once, to be checked and hashed: the plan names it by its SHA-256 and display name.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from layerdiffuse_mcp.api.control import REFERENCE
from layerdiffuse_mcp.api.fields import MAX_SIZE, MIN_SIZE
from layerdiffuse_mcp.api.finish import Finish, IntoCells, IntoDocument, OntoBackground, OverGiven
from layerdiffuse_mcp.api.plan import (
    DecodePlan,
    Download,
    DrawPlan,
    EncodePlan,
    GivenPicture,
    Inputs,
    Planned,
    PreparePlan,
    make_plan,
    methods_of,
)
from layerdiffuse_mcp.api.requests import (
    DecodeRequest,
    EncodeRequest,
    GenerateRequest,
    PrepareRequest,
    Request,
    SetRequest,
)
from layerdiffuse_mcp.api.sizes import Field, area, fit, placement
from layerdiffuse_mcp.errors import ImageError, InvalidRequest
from layerdiffuse_mcp.families.entries import ModelEntry
from layerdiffuse_mcp.families.registry import METHODS
from layerdiffuse_mcp.families.spec import FamilySpec, Task
from layerdiffuse_mcp.hub import catalog
from layerdiffuse_mcp.hub.headers import stated_by
from layerdiffuse_mcp.hub.identify import text_layers
from layerdiffuse_mcp.hub.inversions import check_fits as check_fits_base
from layerdiffuse_mcp.hub.inversions import read_inversions, vectors_of
from layerdiffuse_mcp.hub.latents import read_latent_header
from layerdiffuse_mcp.hub.libraries import check_libraries
from layerdiffuse_mcp.hub.speeds import with_speed
from layerdiffuse_mcp.images.files import name_of, sha256
from layerdiffuse_mcp.jobs import checks
from layerdiffuse_mcp.jobs.bases import family_of, lacking, named_loras, with_codec
from layerdiffuse_mcp.jobs.controls import with_controls
from layerdiffuse_mcp.jobs.doubts import cropped, opaque, resized, unknown, unknown_of_set
from layerdiffuse_mcp.jobs.pace import Paces, likely_cpu
from layerdiffuse_mcp.jobs.prompts import check_prompts
from layerdiffuse_mcp.settings import Settings

MOST_ON_CPU = 4
"""Areas of a model's own that a size may have on a processor, where a request says nothing of how it is fitted."""
MAX_SET_PIXELS = 64 * 1024**2
"""That the pictures of a set may have altogether, as they are drawn."""


def plan(request: Request, settings: Settings) -> Planned:
    """The tasks of a request. It reads files, so it belongs in a thread.

    Raises:
        InvalidRequest: the model cannot do what is asked, an option would change nothing, a prompt is too long.
        ModelNotFound: there is no such model or LoRA, or a file of it is missing and may not be fetched.
        ImageError: a given picture or latent cannot be read, or is too large.
    """
    match request:
        case GenerateRequest():
            return _drawing(request, settings)
        case SetRequest():
            return _set(request, settings)
        case DecodeRequest():
            return _decoding(request, settings)
        case EncodeRequest():
            return _encoding(request, settings)
        case PrepareRequest():
            return _preparing(request, settings)


def _drawing(request: GenerateRequest, settings: Settings, *, of_set: bool = False) -> Planned:
    """The drawing of a request; one `of_set` does not say what the base does not know, which the set does at once."""
    from layerdiffuse_mcp.images.resize import check_fits

    entry = catalog.find(request.model, settings)
    family = family_of(entry, request.task, settings)
    if "speed" in family.accepts:
        request = with_speed(request, entry, settings)
    request = with_controls(request, entry, family, settings)
    methods = methods_of(request, family.id)
    downloads = lacking(entry, request.task, methods, settings)
    loras = named_loras(request, family, settings)
    downloads += tuple(Download(model=lora.name) for lora, _ in loras if lora.path is None)
    _check_clip_skip(request, entry, family)
    pictures, sizes, inputs = _opened(request.pictures, settings.max_pixels)
    inversions = read_inversions(settings.models_dir)
    unlearnt, unknown_subject = unknown(request, entry, methods, vectors_of(inversions))
    notes = (
        *request.notes,
        *opaque(request, methods, settings.max_pixels),
        *(() if of_set else unlearnt),
        *checks.doubts(entry),
    )
    planned = make_plan(
        request.model_copy(update={"notes": notes}),
        family,
        model=entry.name,
        native_size=entry.native_size,
        pictures=pictures,
        picture_size=next((size for name, size in sizes.items() if not name.startswith(REFERENCE)), None),
        advice=[_advice(entry), *(lora.advice for lora, _ in loras)],
        loras=tuple(named for _, named in loras),
    )
    named = check_prompts(planned, family, vectors_of(inversions))
    for name in named:
        check_fits_base(inversions[name], entry, family)
    planned = planned.model_copy(update={"inversions": named})
    _check_size(request, planned, entry, settings)
    _check_redrawn(planned, sizes, settings)
    drawn = family.latent.padded(planned.as_drawn.width, planned.as_drawn.height)
    seen = planned.detail.scaled(drawn) if planned.detail else drawn
    fitted = {picture: size for picture, size in sizes.items() if picture != REFERENCE}  # that has a size of its own
    for picture, size in fitted.items():
        check_fits(size, drawn if picture in ("image", "mask") else seen, planned.resize_mode, picture)
    sized = request.width is not None
    finish = _finish(planned, request, seen, sizes)
    notes = (*planned.notes, *cropped(planned, fitted, drawn, sized=sized))
    if isinstance(finish, OverGiven) and not sized:
        notes += (resized(planned, next(iter(sizes)), next(iter(sizes.values())), finish.placement),)
    planned = planned.model_copy(update={"notes": notes, "unknown_subject": unknown_subject})
    return Planned((planned,), inputs, downloads, finish)


def _finish(
    plan: DrawPlan, request: GenerateRequest, seen: tuple[int, int], sizes: Mapping[str, tuple[int, int]]
) -> Finish | None:
    """What becomes of what is drawn from pictures: a foreground is also wanted on its background, the layers of a
    picture as one file; of anything else its place on the first picture, where that has another size.
    """
    given = plan.image or next(iter(plan.inputs.values()), None)
    if given is None or plan.kept:
        return None
    if METHODS[plan.methods[0]].takes_apart:
        size, planned = (plan.width, plan.height), plan.layers**plan.depth
        return IntoDocument(given.sha256, given.name, size, planned, request.document, request.metadata == "full")
    field = Field(seen, plan.as_drawn.result, plan.fit, plan.resize_mode)
    if plan.task is Task.FOREGROUND_FROM_BACKGROUND:
        return OntoBackground(given.sha256, given.name, field, plan.format)
    size = next(iter(sizes.values()))
    return OverGiven(placement(size, plan.result, field), given.name) if size != plan.result else None


def _set(request: SetRequest, settings: Settings) -> Planned:
    """The drawings of a set: each is a task, and all go into cells."""
    from layerdiffuse_mcp.images.sets import set_grid

    first = request.pictures[0]
    entry = catalog.find(first.model, settings)
    size: dict[str, int] = {}
    shape = request.cell.pixels or ((1, 1) if any(picture.control for picture in request.pictures) else None)
    if shape:  # drawn in the cell's shape, at about the size that the model draws best
        width, height = fit(shape, entry.native_size, min(64, entry.native_size // 4))
        size = {"width": first.width or width, "height": first.height or height}
    drawings = [_drawing(picture.model_copy(update=size), settings, of_set=True) for picture in request.pictures]
    tasks = [task for drawing in drawings for task in drawing.tasks if isinstance(task, DrawPlan)]
    unlearnt = [name for name, task in zip(request.subjects, tasks, strict=True) if task.unknown_subject]
    notes = (*tasks[0].notes, *unknown_of_set(unlearnt, entry))
    tasks[0] = tasks[0].model_copy(update={"notes": notes})
    drawn = tasks[0].result
    cell = request.cell.pixels or drawn
    for width, height in (drawn, cell):
        if (pixels := len(tasks) * width * height) > MAX_SET_PIXELS:
            raise InvalidRequest(
                f"{len(tasks)} pictures of {width}x{height} have {pixels / 1e6:.0f} million pixels, and a set may have "
                f"{MAX_SET_PIXELS / 1e6:.0f} million. Give fewer subjects or a smaller cell."
            )
    if request.sheet:
        set_grid(cell, len(tasks)).check(f".{first.format}", settings.max_pixels)
    finish = IntoCells(request.subjects, request.cell, request.sheet, request.name, first.format)
    downloads = dict.fromkeys(download for drawing in drawings for download in drawing.downloads)
    inputs = {content: path for drawing in drawings for content, path in drawing.inputs.items()}
    return Planned(tuple(tasks), inputs, tuple(downloads), finish)


def _check_size(request: GenerateRequest, planned: DrawPlan, entry: ModelEntry, settings: Settings) -> None:
    """Refuse a size far beyond the model's own on a processor, unless it says how that is to be come by."""
    times = area((planned.width, planned.height), entry.native_size)
    if planned.drawn is None or request.fit or request.drawn or times <= MOST_ON_CPU or not likely_cpu(settings):
        return
    small, large = ("{}x{}".format(*size) for size in (planned.drawn, (planned.width, planned.height)))
    whole = Paces().seconds((planned.model_copy(update={"drawn": None}),))
    takes = f"about {whole:.0f} s" if whole else "long"
    raise InvalidRequest(
        f"{large} has {times:.3g} times the area that {entry.name} draws best ({entry.native_size}x"
        f"{entry.native_size}); without being asked to, at most {MOST_ON_CPU} times that is done on a processor. Ask "
        f"for less, or set options.fit: 'as_is' draws {large}, which takes {takes}, and subjects may repeat; "
        f"'{planned.fit}' draws {small} and enlarges it, which adds no detail."
    )


def _check_redrawn(planned: DrawPlan, sizes: Mapping[str, tuple[int, int]], settings: Settings) -> None:
    """Refuse a picture that is too large or too small to be enlarged, and a result that could not be read again."""
    if planned.kept and not all(MIN_SIZE <= side <= MAX_SIZE for side in sizes["image"]):
        width, height = sizes["image"]
        raise ImageError(
            f"The picture has {width}x{height} pixels, and {MIN_SIZE} to {MAX_SIZE} a side can be redrawn. Give a copy "
            "of such a size."
        )
    width, height = planned.result
    if planned.detail and width * height > settings.max_pixels:
        raise InvalidRequest(
            f"{width}x{height} has more than the {settings.max_pixels / 1e6:.1f} million pixels that are read here. "
            "Choose a smaller scale, or raise LAYERDIFFUSE_MAX_PIXELS."
        )


def _decoding(request: DecodeRequest, settings: Settings) -> Planned:
    header = read_latent_header(request.latent)
    entry = catalog.find(request.model or header.model, settings)
    family = with_codec(entry, settings)
    if header.family not in (None, family.id):
        raise InvalidRequest(
            f"{name_of(request.latent)} is a latent of a {header.family} model, and {entry.name} is {family.id}. "
            f"Name a {header.family} model."
        )
    if header.shape[0] != family.latent.channels:
        raise InvalidRequest(
            f"{name_of(request.latent)} has {header.shape[0]} channels, and latents of {family.title} models have "
            f"{family.latent.channels}. Name a model of the family that it was made with."
        )
    given = _given(request.latent)
    task = DecodePlan(model=entry.name, latent=given, name=request.name, format=request.format)
    return Planned((task,), {given.sha256: request.latent}, lacking(entry, None, (), settings))


def _encoding(request: EncodeRequest, settings: Settings) -> Planned:
    entry = catalog.find(request.model, settings)
    with_codec(entry, settings)
    downloads = lacking(entry, None, (), settings)
    pictures, sizes, inputs = _opened({"image": request.image}, min(settings.max_pixels, MAX_SIZE**2))
    width, height = sizes["image"]
    if max(width, height) > MAX_SIZE:
        raise ImageError(
            f"{name_of(request.image)} has {width}x{height} pixels; at most {MAX_SIZE} a side can be encoded. "
            "Give a smaller copy."
        )
    task = EncodePlan(model=entry.name, image=pictures["image"], name=request.name)
    return Planned((task,), inputs, downloads)


def _preparing(request: PrepareRequest, settings: Settings) -> Planned:
    entry = catalog.find_any(request.model, settings)
    check_libraries(entry, settings)
    if not isinstance(entry, ModelEntry):
        if entry.remote is None:
            catalog.lora(entry.name, settings)  # nobody but the user can bring it: says so where it is not here
        return Planned((), downloads=(Download(model=entry.name),))
    if not entry.published:
        catalog.base_file(entry, settings)
    methods = catalog.methods_for(entry, request.task)
    download = Download(model=entry.name, methods=methods)  # of one that is here too: damaged files are mended
    return Planned((PreparePlan(model=entry.name, methods=methods),), downloads=(download,))


def _check_clip_skip(request: GenerateRequest, entry: ModelEntry, family: FamilySpec) -> None:
    acts = request.clip_skip and "clip_skip" in family.accepts
    layers = text_layers(entry.path, family) if acts and entry.path else None
    if request.clip_skip and layers and request.clip_skip > layers:
        raise InvalidRequest(
            f"clip_skip is {request.clip_skip}, and the text encoder of {entry.name} has {layers} layers: "
            f"choose 1 to {layers}, or leave it out."
        )


def _advice(entry: ModelEntry) -> Mapping[str, Any]:
    """What a base advises: its own file's header over its row in the catalogue."""
    advice = stated_by(entry.path).get("advice") if entry.path else None
    return entry.advice | advice if isinstance(advice, dict) else entry.advice


def _given(path: Path) -> GivenPicture:
    from layerdiffuse_mcp.images.read import opened_file

    with opened_file(path) as file:
        return GivenPicture(name=name_of(path), sha256=sha256(file), bytes=file.seek(0, 2))


def _opened(
    paths: Mapping[str, Path], max_pixels: int
) -> tuple[dict[str, GivenPicture], dict[str, tuple[int, int]], Inputs]:
    """Of given pictures by name: what they hold, their sizes (width, height), and where their contents lie."""
    from layerdiffuse_mcp.images.read import opened_file, picture_size

    pictures: dict[str, GivenPicture] = {}
    sizes: dict[str, tuple[int, int]] = {}
    inputs: dict[str, Path] = {}
    for name, path in paths.items():
        with opened_file(path) as file:
            sizes[name] = picture_size(file, max_pixels)
            pictures[name] = GivenPicture(name=name_of(path), sha256=sha256(file), bytes=file.seek(0, 2))
        inputs[pictures[name].sha256] = path
    return pictures, sizes, inputs
