"""Models and the machine: what there is, what is loaded, what it runs on."""

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import anyio.to_thread
from mcp.server.mcpserver import Context
from mcp_types import CallToolResult
from pydantic import BaseModel, Field

from layerdiffuse_mcp import __version__
from layerdiffuse_mcp.api.fields import Omittable
from layerdiffuse_mcp.api.requests import PrepareRequest
from layerdiffuse_mcp.backends.backend import PHASES, Phase, WorkerState
from layerdiffuse_mcp.families.entries import ControlEntry, LoraEntry
from layerdiffuse_mcp.families.matting import MATTING
from layerdiffuse_mcp.families.memory import in_16_bits
from layerdiffuse_mcp.families.registry import FAMILIES
from layerdiffuse_mcp.families.spec import Task
from layerdiffuse_mcp.hub import catalog
from layerdiffuse_mcp.hub.catalog import POCKET
from layerdiffuse_mcp.hub.controls import adapters, controls
from layerdiffuse_mcp.hub.folder import why_unread
from layerdiffuse_mcp.hub.inversions import Inversion, read_inversions
from layerdiffuse_mcp.hub.libraries import needs
from layerdiffuse_mcp.hub.licences import is_free, layer_licences
from layerdiffuse_mcp.hub.vocabulary import LISTS, vocabulary_of
from layerdiffuse_mcp.server.calls import run, unload
from layerdiffuse_mcp.server.results import JobFacts, plain
from layerdiffuse_mcp.server.services import Services, services
from layerdiffuse_mcp.server.tools.consent import TO_PREPARE
from layerdiffuse_mcp.server.tools.parameters import Wait
from layerdiffuse_mcp.settings import Settings
from layerdiffuse_mcp.wording import in_words, printable, quoted

VERSIONS = ("mcp", "torch", "diffusers")
GB = 10**9
MOST_SUBJECTS = 400
"""Subjects of a model that are listed at once."""


class ModelFacts(BaseModel):
    """A base model. `tasks`: what its layer files on this machine can do; `lacking`: what it could do with more."""

    name: str = Field(description="What options.model and prepare_model take")
    default: bool = Field(description="Whether it is drawn with where none is named")
    prepared: bool = Field(description="Whether its files are on this machine")
    family: Omittable[str] = Field(default=None, description="Its architecture, which says what layer files fit")
    native_size: int = Field(description="Side in pixels of the square that it draws best")
    tasks: tuple[str, ...] = Field(default=(), description="What it can do with what is on this machine")
    lacking: tuple[str, ...] = Field(default=(), description="What it could do with more: prepare_model fetches that")
    bytes: Omittable[int] = Field(default=None, description="Size of its file")
    memory: Omittable[dict[str, int]] = Field(
        default=None, description="Bytes on a GPU for one picture at each offload level; computed, not measured"
    )
    licence: Omittable[str] = Field(default=None, description="What its makers allow")
    commercial: bool = Field(default=True, description="False where its licence is known to forbid commercial use")
    layer_licences: tuple[str, ...] = Field(default=(), description="What those of its layer files allow")
    description: str = Field(description="What it is")


class MattingFacts(BaseModel):
    """A network that finds the subject of a photograph, for cut_out."""

    name: str = Field(description="What cut_out takes as its model, and prepare_model as model")
    prepared: bool = Field(description="Whether its file is on this machine")
    bytes: int = Field(description="Size of its file")
    memory: int = Field(description="Bytes of memory that it takes while it runs")
    licence: str = Field(description="What its makers allow")
    description: str = Field(description="What it is")


class Words(BaseModel):
    """All that a small base has learnt words for: what to name in a prompt."""

    model: str = Field(description="The base that knows them")
    subjects: list[str] = Field(description="What it can draw: one of them belongs in each prompt")
    scenes: list[str] = Field(description="Backgrounds, for the tools that draw one")
    styles: list[str] = Field(description="Said behind the subject: a fish, flat")
    materials: list[str] = Field(description="Said before the subject: a glass fish")
    more: int = Field(default=0, description="Subjects that are not listed; a word in `subjects` finds them")


class ModelList(BaseModel):
    """All models, the default one first."""

    models: list[ModelFacts] = Field(description="The base models")
    matting: list[MattingFacts] = Field(description="The networks by which cut_out takes photographs apart")
    vocabularies: list[Words] = Field(description="Of the models that know few words; others know most")
    models_folder: str = Field(description="Where own bases and layer files go")


class WorkerFacts(BaseModel):
    """One of several processes that draw."""

    worker: int = Field(description="Its number, from 0")
    phase: Phase = Field(description="What it does now")
    engine: dict[str, Any] = Field(description="As of its last job")


class ServerStatus(BaseModel):
    """The server, its workers and its folders."""

    version: str = Field(description="Of this server")
    worker: Phase = Field(description="What the process that draws does now; of several, the busiest")
    engine: dict[str, Any] = Field(description="Of that process, as of its last job")
    workers: Omittable[list[WorkerFacts]] = Field(default=None, description="Each process, where several draw")
    running: list[str] = Field(description="Ids of the jobs that run")
    waiting: int = Field(description="How many jobs wait")
    queue_size: int = Field(description="How many may")
    output_folder: str = Field(description="Where pictures are written")
    readable_folders: list[str] = Field(description="Where pictures are read")
    models_folder: str = Field(description="Where models lie")
    versions: dict[str, str] = Field(description="Of the libraries that matter")


async def list_models(
    ctx: Context[Services],
    subjects: Omittable[
        Annotated[
            str,
            Field(
                max_length=200,
                description="List only the subjects, scenes, styles and materials with this word; default: all",
                examples=["apple"],
            ),
        ]
    ] = None,
) -> Annotated[CallToolResult, ModelList]:
    """List the base models: which are on this machine, what each can do, size and licence; the networks by which
    cut_out finds the subject of a photograph; and of a small base, which knows few words, the subjects, scenes, styles
    and materials that a prompt can name.
    """
    settings = services(ctx).settings
    found = await anyio.to_thread.run_sync(_models, settings)
    lines = [_model_line(model) for model in found]
    networks = await anyio.to_thread.run_sync(_networks, settings)
    lines += [_network_line(network) for network in networks]
    words = await anyio.to_thread.run_sync(_words, settings, subjects or "")
    lines += [line for known in words for line in _word_lines(known, subjects)]
    if own := await anyio.to_thread.run_sync(catalog.loras, settings):
        names = ", ".join(_lora_words(lora) for lora in own)
        lines.append(f"LoRAs, to be named in options.loras; of those with a speed options.speed takes one: {names}.")
    if nets := await anyio.to_thread.run_sync(controls, settings):
        names = ", ".join(_control_words(control) for control in nets)
        lines.append(f"ControlNets, to be named in options.control: {names}.")
    if own := await anyio.to_thread.run_sync(adapters, settings):
        lines.append(f"IP-Adapters, to be named in options.reference: {', '.join(map(_control_words, own))}.")
    if taught := await anyio.to_thread.run_sync(read_inversions, settings.models_dir):
        names = ", ".join(_inversion_words(one) for one in taught.values())
        lines.append(f"Textual inversions, used where a prompt has their name: {names}.")
    folder = printable(settings.models_dir)
    lines.append(f"Own bases and layer files (.safetensors) go into {folder}.")
    if why := await anyio.to_thread.run_sync(why_unread, settings.models_dir):
        lines[-1] += f" It cannot be read now ({why}): mend its rights, or set LAYERDIFFUSE_MODELS_DIR."
    return plain("\n".join(lines), ModelList(models=found, matting=networks, vocabularies=words, models_folder=folder))


def _control_words(control: ControlEntry) -> str:
    """Its name, what it fits, and what it follows as far as that is known."""
    fits = FAMILIES[control.family].title if control.family else "fits no base that is known here"
    return f"{control.name} ({fits}{f', {control.kind}' if control.kind else ''})"


def _lora_words(lora: LoraEntry) -> str:
    """Its name, and what a few-step one is for, its size and licence; whether it is here."""
    facts = [f"{FAMILIES[lora.family].title}, speed {lora.speed}"] if lora.speed and lora.family else []
    facts += [lora.licence] if lora.licence else []
    if lora.path is None:
        size = f"{in_words(lora.remote.bytes)}, " if lora.remote and lora.remote.bytes else ""
        facts.append(f"{size}prepare_model fetches it")
    return f"{lora.name} ({', '.join(facts)})" if facts else lora.name


def _inversion_words(inversion: Inversion) -> str:
    """Its name, and for whom it is, as far as its file can be used."""
    if inversion.problem:
        return f"{quoted(inversion.name)} (cannot be used: {inversion.problem.rstrip('.')})"
    several = f"{inversion.vectors} vectors" if inversion.vectors > 1 else "1 vector"
    return f"{quoted(inversion.name)} ({several} of {' and '.join(map(str, inversion.widths))} numbers)"


async def prepare_model(
    ctx: Context[Services],
    model: Omittable[
        Annotated[
            str,
            Field(
                max_length=200,
                description="Name of a base model, LoRA or matting network, as list_models says it; default: the best "
                "base that is here",
            ),
        ]
    ] = None,
    task: Annotated[
        Task, Field(description="What a base model is to do; list_models says what each can")
    ] = Task.TRANSPARENT,
    wait_seconds: Omittable[Wait] = None,
    *,
    fetch: Annotated[bool, TO_PREPARE],
) -> Annotated[CallToolResult, JobFacts]:
    """Prepare a model for a task: fetch what it lacks (gigabytes for real bases; the user is asked first where the
    client can ask) and load it, so that the next call is warm. Returns what was done; or a job_id for get_job.
    """
    request = PrepareRequest(model=model, task=task)
    return await run(ctx, request, "prepare_model", wait_seconds=wait_seconds, fetch=fetch)


async def unload_models(
    ctx: Context[Services],
    model: Omittable[
        Annotated[str, Field(max_length=200, description="Name of a base model, as list_models says it; default: all")]
    ] = None,
    wait_seconds: Omittable[Wait] = None,
) -> Annotated[CallToolResult, JobFacts]:
    """Unload the named model, or all, from memory; the next call loads it again. Returns the names of those that were
    dropped.
    """
    if model is not None:
        model = (await anyio.to_thread.run_sync(catalog.find, model, services(ctx).settings)).name
    return await unload(ctx, model, wait_seconds)


async def server_status(ctx: Context[Services]) -> Annotated[CallToolResult, ServerStatus]:
    """Report the server's status. Returns device, memory, loaded models, queue, folders and versions at once, also
    during a job.
    """
    known = services(ctx)
    settings, jobs = known.settings, known.jobs
    workers = jobs.backend.state()
    worker = max(workers, key=lambda one: PHASES.index(one.phase))
    status = ServerStatus(
        version=__version__,
        worker=worker.phase,
        engine=worker.engine,
        workers=[WorkerFacts(worker=one.worker, phase=one.phase, engine=one.engine) for one in workers]
        if len(workers) > 1
        else None,
        running=[job.id for job in jobs.running],
        waiting=jobs.waiting,
        queue_size=settings.queue_size,
        output_folder=printable(settings.output),
        readable_folders=[printable(folder) for folder in settings.readable],
        models_folder=printable(settings.models_dir),
        versions={name: found for name in VERSIONS if (found := _version(name))},
    )
    engine = _engine_words(worker.engine)
    text = (
        f"layerdiffuse-mcp {status.version}; {_phases(workers)}"
        f"{f' ({engine})' if engine else ''}; {len(status.running)} running, {status.waiting} waiting "
        f"(at most {status.queue_size}). Pictures are written to {status.output_folder} and read from "
        f"{', '.join(status.readable_folders)}."
    )
    return plain(text, status)


def _phases(workers: Sequence[WorkerState]) -> str:
    """What the workers do, in words."""
    if len(workers) == 1:
        return f"worker {workers[0].phase}"
    counted = Counter(worker.phase for worker in workers)
    return f"{len(workers)} workers: " + ", ".join(f"{counted[phase]} {phase}" for phase in PHASES if counted[phase])


def _engine_words(engine: Mapping[str, Any]) -> str:
    """Device, memory and cached models in words, as far as the engine has told them."""
    said = [str(engine[name]) for name in ("device", "dtype") if name in engine]
    said += [
        f"{name.removeprefix('memory_')} memory {engine[name] / GB:.1f} GB"
        for name in ("memory_free", "memory_total")
        if isinstance(engine.get(name), int | float)
    ]
    loaded = [str(entry["model"]) for entry in engine.get("loaded", ()) if "model" in entry]
    return ", ".join([*said, f"loaded: {', '.join(loaded) or 'nothing'}"]) if said else ""


def _models(settings: Settings) -> list[ModelFacts]:
    chosen = catalog.find(None, settings).name
    found: list[ModelFacts] = []
    for entry in catalog.models(settings):
        able = catalog.tasks(entry, settings)
        time = f"; {entry.time}, computed" if entry.time else ""
        found.append(
            ModelFacts(
                name=entry.name,
                default=entry.name == chosen,
                prepared=entry.prepared,
                family=entry.family,
                native_size=entry.native_size,
                tasks=tuple(task.value for task, ready in able.items() if ready and entry.prepared),
                lacking=tuple(task.value for task, ready in able.items() if not (ready and entry.prepared)),
                bytes=entry.bytes,
                memory=in_16_bits(FAMILIES[entry.family]) or None if entry.family and entry.name != POCKET else None,
                licence=entry.licence,
                commercial=is_free(entry),
                layer_licences=tuple(dict.fromkeys(layer_licences(entry).values())),
                description=entry.description + time + needs(entry, settings),
            )
        )
    return sorted(found, key=lambda model: (not model.default, not model.prepared))


def _networks(settings: Settings) -> list[MattingFacts]:
    return [
        MattingFacts(
            name=network.name,
            prepared=not catalog.missing(network, settings),
            bytes=network.remote.bytes or 0,
            memory=network.memory,
            licence=network.remote.licence or "unknown",
            description=network.description + needs(network, settings),
        )
        for network in MATTING.values()
    ]


def _network_line(network: MattingFacts) -> str:
    state = "ready" if network.prepared else "not on this machine, prepare_model fetches it"
    needs = f"{in_words(network.bytes)}, {in_words(network.memory)} of memory, {network.licence}"
    return f"{network.name}, for photographs, as model of cut_out: {state}; {needs}. {network.description}."


def _words(settings: Settings, text: str) -> list[Words]:
    """The vocabularies of models that have one, as far as a text matches."""
    listed: list[Words] = []
    for entry in catalog.models(settings):
        if (known := vocabulary_of(entry)) is None:
            continue
        matching = known.matching(text)
        lists = {kind: [*getattr(matching, kind)] for kind in LISTS}
        names = [*matching.subjects]
        more = max(0, len(names) - MOST_SUBJECTS)
        listed.append(Words(model=entry.name, subjects=names[:MOST_SUBJECTS], more=more, **lists))
    return listed


def _word_lines(known: Words, text: str | None) -> list[str]:
    said = known.model_dump(include={"subjects", *LISTS})
    lines = [f"{kind.capitalize()} that {known.model} knows: {', '.join(said[kind])}." for kind in said if said[kind]]
    if text and not lines:
        return [f"{known.model} knows nothing with {quoted(text)}: without subjects, all that it knows is listed."]
    return lines + ([f"{known.more} more subjects: a word in subjects finds them."] if known.more else [])


def _model_line(model: ModelFacts) -> str:
    state = "ready" if model.prepared else "not on this machine"
    size = f", {model.bytes / GB:.2f} GB" if model.bytes else ""
    can = f"; can do: {', '.join(model.tasks)}" if model.tasks else ""
    can += f"; would do: {', '.join(model.lacking)}" if model.lacking else ""
    licences = f"; licence {model.licence or 'unknown'}"
    if model.layer_licences and set(model.layer_licences) != {model.licence}:
        licences += f", of its layer files {', '.join(model.layer_licences)}"
    first = " (default)" if model.default else ""
    least, *_, most = sorted((model.memory or {}).values()) or (0, 0)
    memory = f"; {least / GB:.0f} to {most / GB:.0f} GB of GPU memory, computed" if most else ""
    what = f"{model.family}, {model.native_size} px{size}{memory}{licences}{can}"
    return f"{model.name}{first}: {state}, {what}. {model.description}."


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
