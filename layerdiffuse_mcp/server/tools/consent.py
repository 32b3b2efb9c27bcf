"""A tool's parameter that no agent sees: whether the person at the client agreed that files are fetched.

    fetch: Annotated[bool, consent_to_draw(drawings)]                  # of a drawing tool
    fetch: Annotated[bool, TO_PREPARE]                                 # of prepare_model
    await run(ctx, request, what, fetch=fetch)

The SDK asks before the tool begins, on either protocol era; a person who declines ends the call. It is False where
nothing has to be asked, and where the client cannot be asked: then a drawing fetches what the settings allow and says
otherwise how to fetch it, and `prepare_model` fetches whatever is free for commercial use, for it is asked for by name.
"""

from collections.abc import Callable, Sequence
from typing import Annotated

import anyio.to_thread
from mcp.server.elicitation import AcceptedElicitation, ElicitationResult
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.resolve import Elicit, Resolve
from mcp_types.version import is_version_at_least
from pydantic import BaseModel, Field

from layerdiffuse_mcp.api.fields import ModelName
from layerdiffuse_mcp.api.plan import Download, methods_of
from layerdiffuse_mcp.api.requests import GenerateRequest
from layerdiffuse_mcp.errors import ConsentNeeded, LayerDiffuseError
from layerdiffuse_mcp.families.entries import ModelEntry
from layerdiffuse_mcp.families.spec import Task
from layerdiffuse_mcp.hub import catalog, consent
from layerdiffuse_mcp.hub.speeds import with_speed
from layerdiffuse_mcp.server.services import Services, services
from layerdiffuse_mcp.settings import Settings
from layerdiffuse_mcp.text.emphasis import extract_loras

ASKS_WITHIN_RESULTS = "2026-07-28"
"""Since this revision a question travels as a call's result; before, it was a request that a transport has to carry."""
Downloads = Callable[[Settings], list[Download]]
Drawings = Callable[[], Sequence[GenerateRequest]]
"""Makes the requests that a tool's parameters mean."""


class Answer(BaseModel):
    """What the person says."""

    fetch: bool = Field(title="Fetch", description="Whether to fetch these files now")


class NotAsked(Answer):
    """What stands for an answer where there was no question."""


def consent_to_draw(drawings: Callable[..., Drawings]) -> Resolve:
    """Of a drawing tool: whether to fetch what its model lacks. `drawings` takes parameters of the tool by their names.

    It says what would be drawn by a function that may read files: that is called in a thread.
    """

    async def question(
        ctx: Context[Services], drawings: Annotated[Drawings, Resolve(drawings)]
    ) -> Elicit[Answer] | NotAsked:
        def downloads(settings: Settings) -> list[Download]:
            wanted = (download for request in drawings() for download in _downloads(request, settings))
            return list(dict.fromkeys(wanted))

        return await _question(ctx, downloads, consent.NOTHING)

    return _agreed(question)


def _downloads(request: GenerateRequest, settings: Settings) -> list[Download]:
    """What a drawing needs: a base with layer files, and the LoRAs that its prompts name."""
    entry = catalog.find(request.model, settings)
    base = Download(model=entry.name, methods=methods_of(request, entry.family or ""))
    if catalog.unconverted(entry, settings, base.methods):
        return []  # it could not be drawn with: the planner says what to do first
    request = with_speed(request, entry, settings)
    texts = (request.prompt, *request.layer_prompts.values())
    return [base, *(Download(model=lora.name) for text in texts for lora in extract_loras(text)[1])]


async def _to_use(ctx: Context[Services], model: str | None) -> Elicit[Answer] | NotAsked:
    return await _question(ctx, lambda _: [Download(model=model)] if model else [], consent.NOTHING)


async def _to_prepare(ctx: Context[Services], model: ModelName | None, task: Task) -> Elicit[Answer] | NotAsked:
    def downloads(settings: Settings) -> list[Download]:
        entry = catalog.find_any(model, settings)
        methods = catalog.methods_for(entry, task) if isinstance(entry, ModelEntry) else ()
        return [Download(model=entry.name, methods=methods)]

    return await _question(ctx, downloads, consent.ASK_ABOVE)


async def _question(ctx: Context[Services], downloads: Downloads, free: float) -> Elicit[Answer] | NotAsked:
    """What to ask the person, if anything has to be asked and the client can. What is wrong the tool says itself."""
    settings = services(ctx).settings

    def question() -> str | None:
        try:
            wanted = downloads(settings)
            files = consent.lacking(wanted, settings)
        except LayerDiffuseError:
            return None
        may = consent.ANY_SIZE if settings.auto_download else free
        if not consent.asks(files, may):
            return None
        return f"{consent.question(files)} {consent.takes(wanted, settings)}".rstrip()

    if not _can_be_asked(ctx):
        return NotAsked(fetch=False)
    text = await anyio.to_thread.run_sync(question)
    return NotAsked(fetch=False) if text is None else Elicit(text, Answer)


def _can_be_asked(ctx: Context[Services]) -> bool:
    capabilities = ctx.client_capabilities
    forms = capabilities.elicitation if capabilities else None
    if forms is None or (forms.form is None and forms.url is not None):
        return False
    version = ctx.protocol_version
    within_results = version is not None and is_version_at_least(version, ASKS_WITHIN_RESULTS)
    return within_results or ctx.session.can_send_request


def _agreed(question: Callable[..., object]) -> Resolve:
    async def agreed(answer: Annotated[ElicitationResult[Answer], Resolve(question)]) -> bool:
        match answer:
            case AcceptedElicitation(data=NotAsked()):
                return False
            case AcceptedElicitation(data=Answer(fetch=True)):
                return True
            case _:
                raise ConsentNeeded(
                    "The user declined the download, and nothing was fetched. Name a model that list_models calls "
                    "ready, or ask again later."
                )

    return Resolve(agreed)


TO_PREPARE = _agreed(_to_prepare)
"""Of `prepare_model`, by its `model` and `task`."""
TO_USE = _agreed(_to_use)
"""Of a tool that needs no layer files: by its `model`, a base or a matting network."""
