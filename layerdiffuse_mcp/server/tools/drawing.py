"""The drawing tools: one table of what each takes, one function that draws.

Every row makes a `GenerateRequest`; which pictures are given decides the task where a
tool has more than one.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import anyio.to_thread
from mcp.server.mcpserver import Context
from mcp_types import CallToolResult

from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.methods import ROLES, Role, Task
from layerdiffuse_mcp.requests import GenerateRequest, validated
from layerdiffuse_mcp.server.declare import WRITES, Declaration
from layerdiffuse_mcp.server.results import JobResult
from layerdiffuse_mcp.server.running import run
from layerdiffuse_mcp.server.services import Keep, Services, services
from layerdiffuse_mcp.server.tools.parameters import DRAWING

Inputs = frozenset[Role]

FIRST = ("prompt", "negative_prompt")
COMMON = (
    "model", "seed", "count", "width", "height", "steps", "sampler", "schedule", "guidance_scale",
    "preview", "wait_seconds",
)  # fmt: skip
SHOWN_DEFAULTS = ("strength", "seed", "count", "resize_mode", "save_latent")
"""Parameters whose default is a constant rather than the method's advice."""


@dataclass(frozen=True)
class Drawing:
    """A row: a drawing tool. `tasks` says what the given pictures make of it."""

    name: str
    title: str
    description: str
    tasks: Mapping[Inputs, Task]
    takes: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    layer_prompts: tuple[Role, ...] = field(default=())

    @property
    def pictures(self) -> tuple[Role, ...]:
        """Layers that it may be given."""
        return tuple(role for role in ROLES if any(role in inputs for inputs in self.tasks))

    @property
    def required(self) -> frozenset[str]:
        """The names of those that cannot be left out."""
        always = [role for role in ROLES if all(role in inputs for inputs in self.tasks)]
        return frozenset({*self.needs, *always, *(() if "recipe_from" in self.takes else ("prompt",))})

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of its parameters, in order."""
        own = tuple(f"{role}_prompt" for role in self.layer_prompts)
        return (*FIRST, *self.needs, *self.pictures, *own, *self.takes, *COMMON)


NONE: Inputs = frozenset()
ACTS = ("layer_weight", "stop_at")

ROWS = (
    Drawing(
        "generate_transparent", "Draw a transparent picture",
        "Draw subjects with real alpha (soft edges, glass, hair) as RGBA PNG files. "
        "Describe the subject alone; a background prompt spoils the cut-out.",
        {NONE: Task.TRANSPARENT}, takes=("recipe_from", "method", *ACTS, "save_latent"),
    ),
    Drawing(
        "edit_transparent", "Change a transparent picture",
        "Redraw an RGBA picture, or its masked part, after a prompt; the result has real alpha too.",
        {NONE: Task.TRANSPARENT}, needs=("image",), takes=("mask", "strength", "resize_mode", *ACTS),
    ),
    Drawing(
        "generate_layers", "Draw foreground, background and blended together",
        "Draw a matching layer set at once: transparent foreground, opaque background, and both blended. SD1.5 models.",
        {NONE: Task.LAYERS}, layer_prompts=("foreground", "background", "blended"),
    ),
    Drawing(
        "generate_background_from_foreground", "Draw a background for a foreground",
        "Draw a background that fits an RGBA foreground, and the two blended. The prompt describes the whole scene.",
        {frozenset({"foreground"}): Task.BACKGROUND_FROM_FOREGROUND},
        takes=("resize_mode", *ACTS), layer_prompts=("background", "blended"),
    ),
    Drawing(
        "generate_foreground_from_background", "Draw a foreground for a background",
        "Draw a transparent foreground that fits a background, and the two blended.",
        {frozenset({"background"}): Task.FOREGROUND_FROM_BACKGROUND},
        takes=("resize_mode", "layer_weight"), layer_prompts=("foreground", "blended"),
    ),
    Drawing(
        "generate_blended", "Draw a scene around a layer",
        "Draw the blended scene for either a foreground or a background.",
        {
            frozenset({"foreground"}): Task.BLENDED_FROM_FOREGROUND,
            frozenset({"background"}): Task.BLENDED_FROM_BACKGROUND,
        },
        takes=("resize_mode", "layer_weight"),
    ),
    Drawing(
        "extract_layer", "Take a layer out of a blended picture",
        "Blended and background give the transparent foreground; blended and foreground the background. SDXL models.",
        {
            frozenset({"blended", "background"}): Task.EXTRACT_FOREGROUND,
            frozenset({"blended", "foreground"}): Task.EXTRACT_BACKGROUND,
        },
        takes=("resize_mode", *ACTS),
    ),
)  # fmt: skip
"""The drawing tools."""


def _declared(row: Drawing) -> Declaration:
    async def draw(ctx: Context[Services], **given: Any) -> CallToolResult:
        arguments = {name: value for name, value in given.items() if value is not None}
        preview, wait_seconds = arguments.pop("preview", True), arguments.pop("wait_seconds", None)
        request = await anyio.to_thread.run_sync(_request, services(ctx), row, arguments)
        return await run(ctx, request, row.name, wait_seconds=wait_seconds, preview=preview)

    draw.__name__, draw.__doc__ = row.name, row.description
    fields = GenerateRequest.model_fields
    defaults = {name: fields[name].default for name in row.parameters if name in SHOWN_DEFAULTS} | {"preview": True}
    return Declaration(
        draw, row.title, WRITES, JobResult, defaults, 3 if row is ROWS[0] else 0,
        signature=_all_of_them, takes=row.parameters, required=row.required,
    )  # fmt: skip


async def _all_of_them(ctx: Context[Services], **given: Any) -> CallToolResult:
    """What every drawing tool may take, for one model of their arguments."""
    raise NotImplementedError


_all_of_them.__signature__ = inspect.Signature(  # pyright: ignore[reportFunctionMemberAccess]
    [
        inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=Context[Services]),
        *(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind | None)
            for name, kind in DRAWING.items()
        ),
    ],
    return_annotation=CallToolResult,
)
TOOLS = tuple(_declared(row) for row in ROWS)


def _request(known: Services, row: Drawing, arguments: dict[str, Any]) -> GenerateRequest:
    """The request that the arguments ask for; reads files, so it belongs in a thread."""
    from layerdiffuse_mcp.recipes import read_recipe, request_from

    source = arguments.pop("recipe_from", None)
    with known.contents.keeping() as keep:
        if source is None:
            fields = _fields(known, row, arguments, keep)
            fields["task"] = _task(row, frozenset(fields.get("inputs", {})))
            request = validated(GenerateRequest, fields)
        else:
            with known.readable(source) as opened:
                recipe = read_recipe(opened.file, known.settings.max_pixels)
            changes = _fields(known, row, arguments, keep)
            request = request_from(recipe, changes, lambda wanted: known.find(wanted, keep))
        known.check_model(request.model, request.task)
    return request


def _fields(known: Services, row: Drawing, arguments: Mapping[str, Any], keep: Keep) -> dict[str, Any]:
    """The arguments under the names that a request has for them."""
    fields = dict(arguments)
    inputs = {role: known.picture(fields.pop(role), keep) for role in row.pictures if role in fields}
    prompts = {role: fields.pop(f"{role}_prompt") for role in row.layer_prompts if f"{role}_prompt" in fields}
    fields |= {name: known.picture(fields[name], keep) for name in ("image", "mask") if name in fields}
    fields |= {name: value for name, value in (("inputs", inputs), ("layer_prompts", prompts)) if value}
    return fields


def _task(row: Drawing, given: Inputs) -> Task:
    task = row.tasks.get(given)
    if task is None:
        ways = " or ".join(" and ".join(sorted(inputs)) for inputs in row.tasks)
        got = " and ".join(sorted(given)) or "no picture"
        raise InvalidRequest(f"{row.name} takes {ways}, and got {got}. Give paths or image ids of exactly those.")
    return task
