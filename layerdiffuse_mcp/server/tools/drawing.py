"""The drawing tools: each builds a `GenerateRequest` of what it is given, and runs it as a job."""

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

import anyio.to_thread
from mcp.server.mcpserver import Context
from mcp_types import CallToolResult

from layerdiffuse_mcp.api.fields import (
    DRAW_SEED,
    RESIZE_MODE,
    STRENGTH,
    Count,
    Denoising,
    Guidance,
    LayerWeight,
    ModelName,
    NegativePrompt,
    Omittable,
    Prompt,
    ResizeMode,
    SamplerName,
    SaveLatent,
    ScheduleName,
    Seed,
    Size,
    Steps,
    StopAt,
)
from layerdiffuse_mcp.api.requests import GenerateRequest, validated
from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.families.spec import Role, Task
from layerdiffuse_mcp.server.calls import run
from layerdiffuse_mcp.server.results import JobResult
from layerdiffuse_mcp.server.services import Keep, Services, services
from layerdiffuse_mcp.server.tools.parameters import (
    Background,
    BackgroundPrompt,
    Blended,
    BlendedPrompt,
    Foreground,
    ForegroundPrompt,
    Image,
    Mask,
    Preview,
    RecipeFrom,
    TransparentMethod,
    Wait,
)

Files = Mapping[Role, str | None]

BLENDED: Mapping[frozenset[Role], Task] = {
    frozenset({"foreground"}): Task.BLENDED_FROM_FOREGROUND,
    frozenset({"background"}): Task.BLENDED_FROM_BACKGROUND,
}
EXTRACTED: Mapping[frozenset[Role], Task] = {
    frozenset({"blended", "background"}): Task.EXTRACT_FOREGROUND,
    frozenset({"blended", "foreground"}): Task.EXTRACT_BACKGROUND,
}
"""Tasks by the pictures given, for tools that have more than one."""


async def generate_transparent(
    ctx: Context[Services],
    *,
    prompt: Omittable[Prompt] = None,
    negative_prompt: Omittable[NegativePrompt] = None,
    recipe_from: Omittable[RecipeFrom] = None,
    method: Omittable[TransparentMethod] = None,
    layer_weight: Omittable[LayerWeight] = None,
    stop_at: Omittable[StopAt] = None,
    save_latent: Omittable[SaveLatent] = None,
    model: Omittable[ModelName] = None,
    seed: Omittable[Seed] = None,
    count: Omittable[Count] = None,
    width: Omittable[Size] = None,
    height: Omittable[Size] = None,
    steps: Omittable[Steps] = None,
    sampler: Omittable[SamplerName] = None,
    schedule: Omittable[ScheduleName] = None,
    guidance_scale: Omittable[Guidance] = None,
    preview: Preview = True,
    wait_seconds: Omittable[Wait] = None,
) -> Annotated[CallToolResult, JobResult]:
    """Draw subjects with real alpha (soft edges, glass, hair) as RGBA PNG files; returns their paths and alpha
    facts. Describe the subject alone; a background prompt spoils the cut-out.
    """
    return await _draw(
        ctx, "generate_transparent", preview=preview, wait_seconds=wait_seconds, task=Task.TRANSPARENT,
        prompt=prompt, negative_prompt=negative_prompt, recipe_from=recipe_from, method=method,
        layer_weight=layer_weight, stop_at=stop_at, save_latent=save_latent, model=model, seed=seed, count=count,
        width=width, height=height, steps=steps, sampler=sampler, schedule=schedule, guidance_scale=guidance_scale,
    )  # fmt: skip


async def edit_transparent(
    ctx: Context[Services],
    *,
    prompt: Prompt,
    image: Image,
    mask: Omittable[Mask] = None,
    negative_prompt: NegativePrompt = "",
    strength: Denoising = STRENGTH,
    resize_mode: ResizeMode = RESIZE_MODE,
    layer_weight: Omittable[LayerWeight] = None,
    stop_at: Omittable[StopAt] = None,
    model: Omittable[ModelName] = None,
    seed: Seed = DRAW_SEED,
    count: Count = 1,
    width: Omittable[Size] = None,
    height: Omittable[Size] = None,
    steps: Omittable[Steps] = None,
    sampler: Omittable[SamplerName] = None,
    schedule: Omittable[ScheduleName] = None,
    guidance_scale: Omittable[Guidance] = None,
    preview: Preview = True,
    wait_seconds: Omittable[Wait] = None,
) -> Annotated[CallToolResult, JobResult]:
    """Redraw an RGBA picture, or its masked part, after a prompt; returns the path of a picture with real alpha
    too.
    """
    return await _draw(
        ctx, "edit_transparent", preview=preview, wait_seconds=wait_seconds, task=Task.TRANSPARENT,
        prompt=prompt, image=image, mask=mask, negative_prompt=negative_prompt, strength=strength,
        resize_mode=resize_mode, layer_weight=layer_weight, stop_at=stop_at, model=model, seed=seed, count=count,
        width=width, height=height, steps=steps, sampler=sampler, schedule=schedule, guidance_scale=guidance_scale,
    )  # fmt: skip


async def generate_layers(
    ctx: Context[Services],
    *,
    prompt: Prompt,
    negative_prompt: NegativePrompt = "",
    foreground_prompt: ForegroundPrompt = "",
    background_prompt: BackgroundPrompt = "",
    blended_prompt: BlendedPrompt = "",
    model: Omittable[ModelName] = None,
    seed: Seed = DRAW_SEED,
    count: Count = 1,
    width: Omittable[Size] = None,
    height: Omittable[Size] = None,
    steps: Omittable[Steps] = None,
    sampler: Omittable[SamplerName] = None,
    schedule: Omittable[ScheduleName] = None,
    guidance_scale: Omittable[Guidance] = None,
    preview: Preview = True,
    wait_seconds: Omittable[Wait] = None,
) -> Annotated[CallToolResult, JobResult]:
    """Draw a matching layer set at once: transparent foreground, opaque background, and both blended; returns the
    three paths. SD1.5 models.
    """
    own = {"foreground": foreground_prompt, "background": background_prompt, "blended": blended_prompt}
    return await _draw(
        ctx, "generate_layers", preview=preview, wait_seconds=wait_seconds, task=Task.LAYERS, layer_prompts=own,
        prompt=prompt, negative_prompt=negative_prompt, model=model, seed=seed, count=count, width=width,
        height=height, steps=steps, sampler=sampler, schedule=schedule, guidance_scale=guidance_scale,
    )  # fmt: skip


async def generate_background_from_foreground(
    ctx: Context[Services],
    *,
    prompt: Prompt,
    foreground: Foreground,
    negative_prompt: NegativePrompt = "",
    background_prompt: BackgroundPrompt = "",
    blended_prompt: BlendedPrompt = "",
    resize_mode: ResizeMode = RESIZE_MODE,
    layer_weight: Omittable[LayerWeight] = None,
    stop_at: Omittable[StopAt] = None,
    model: Omittable[ModelName] = None,
    seed: Seed = DRAW_SEED,
    count: Count = 1,
    width: Omittable[Size] = None,
    height: Omittable[Size] = None,
    steps: Omittable[Steps] = None,
    sampler: Omittable[SamplerName] = None,
    schedule: Omittable[ScheduleName] = None,
    guidance_scale: Omittable[Guidance] = None,
    preview: Preview = True,
    wait_seconds: Omittable[Wait] = None,
) -> Annotated[CallToolResult, JobResult]:
    """Draw a background that fits an RGBA foreground, and the two blended; returns both paths. The prompt
    describes the whole scene.
    """
    own = {"background": background_prompt, "blended": blended_prompt}
    return await _draw(
        ctx, "generate_background_from_foreground", preview=preview, wait_seconds=wait_seconds,
        task=Task.BACKGROUND_FROM_FOREGROUND,
        inputs={"foreground": foreground}, layer_prompts=own,
        prompt=prompt, negative_prompt=negative_prompt, resize_mode=resize_mode, layer_weight=layer_weight,
        stop_at=stop_at, model=model, seed=seed, count=count, width=width, height=height, steps=steps,
        sampler=sampler, schedule=schedule, guidance_scale=guidance_scale,
    )  # fmt: skip


async def generate_foreground_from_background(
    ctx: Context[Services],
    *,
    prompt: Prompt,
    background: Background,
    negative_prompt: NegativePrompt = "",
    foreground_prompt: ForegroundPrompt = "",
    blended_prompt: BlendedPrompt = "",
    resize_mode: ResizeMode = RESIZE_MODE,
    layer_weight: Omittable[LayerWeight] = None,
    model: Omittable[ModelName] = None,
    seed: Seed = DRAW_SEED,
    count: Count = 1,
    width: Omittable[Size] = None,
    height: Omittable[Size] = None,
    steps: Omittable[Steps] = None,
    sampler: Omittable[SamplerName] = None,
    schedule: Omittable[ScheduleName] = None,
    guidance_scale: Omittable[Guidance] = None,
    preview: Preview = True,
    wait_seconds: Omittable[Wait] = None,
) -> Annotated[CallToolResult, JobResult]:
    """Draw a transparent foreground that fits a background, and the two blended; returns both paths."""
    own = {"foreground": foreground_prompt, "blended": blended_prompt}
    return await _draw(
        ctx, "generate_foreground_from_background", preview=preview, wait_seconds=wait_seconds,
        task=Task.FOREGROUND_FROM_BACKGROUND,
        inputs={"background": background}, layer_prompts=own,
        prompt=prompt, negative_prompt=negative_prompt, resize_mode=resize_mode, layer_weight=layer_weight,
        model=model, seed=seed, count=count, width=width, height=height, steps=steps, sampler=sampler,
        schedule=schedule, guidance_scale=guidance_scale,
    )  # fmt: skip


async def generate_blended(
    ctx: Context[Services],
    *,
    prompt: Prompt,
    foreground: Omittable[Foreground] = None,
    background: Omittable[Background] = None,
    negative_prompt: NegativePrompt = "",
    resize_mode: ResizeMode = RESIZE_MODE,
    layer_weight: Omittable[LayerWeight] = None,
    model: Omittable[ModelName] = None,
    seed: Seed = DRAW_SEED,
    count: Count = 1,
    width: Omittable[Size] = None,
    height: Omittable[Size] = None,
    steps: Omittable[Steps] = None,
    sampler: Omittable[SamplerName] = None,
    schedule: Omittable[ScheduleName] = None,
    guidance_scale: Omittable[Guidance] = None,
    preview: Preview = True,
    wait_seconds: Omittable[Wait] = None,
) -> Annotated[CallToolResult, JobResult]:
    """Draw the blended scene for either a foreground or a background; returns the path of the opaque picture."""
    inputs: Files = {"foreground": foreground, "background": background}
    task = _task_of("generate_blended", inputs, BLENDED)
    return await _draw(
        ctx, "generate_blended", preview=preview, wait_seconds=wait_seconds, task=task, inputs=inputs,
        prompt=prompt, negative_prompt=negative_prompt, resize_mode=resize_mode, layer_weight=layer_weight,
        model=model, seed=seed, count=count, width=width, height=height, steps=steps, sampler=sampler,
        schedule=schedule, guidance_scale=guidance_scale,
    )  # fmt: skip


async def extract_layer(
    ctx: Context[Services],
    *,
    prompt: Prompt,
    blended: Blended,
    foreground: Omittable[Foreground] = None,
    background: Omittable[Background] = None,
    negative_prompt: NegativePrompt = "",
    resize_mode: ResizeMode = RESIZE_MODE,
    layer_weight: Omittable[LayerWeight] = None,
    stop_at: Omittable[StopAt] = None,
    model: Omittable[ModelName] = None,
    seed: Seed = DRAW_SEED,
    count: Count = 1,
    width: Omittable[Size] = None,
    height: Omittable[Size] = None,
    steps: Omittable[Steps] = None,
    sampler: Omittable[SamplerName] = None,
    schedule: Omittable[ScheduleName] = None,
    guidance_scale: Omittable[Guidance] = None,
    preview: Preview = True,
    wait_seconds: Omittable[Wait] = None,
) -> Annotated[CallToolResult, JobResult]:
    """Take a layer out of a blended picture and return its path: blended and background give the transparent
    foreground, blended and foreground the background. SDXL models.
    """
    inputs: Files = {"foreground": foreground, "background": background, "blended": blended}
    task = _task_of("extract_layer", inputs, EXTRACTED)
    return await _draw(
        ctx, "extract_layer", preview=preview, wait_seconds=wait_seconds, task=task, inputs=inputs,
        prompt=prompt, negative_prompt=negative_prompt, resize_mode=resize_mode, layer_weight=layer_weight,
        stop_at=stop_at, model=model, seed=seed, count=count, width=width, height=height, steps=steps,
        sampler=sampler, schedule=schedule, guidance_scale=guidance_scale,
    )  # fmt: skip


async def _draw(
    ctx: Context[Services],
    what: str,
    *,
    preview: bool,
    wait_seconds: float | None,
    recipe_from: str | None = None,
    inputs: Files | None = None,
    layer_prompts: Mapping[str, str] | None = None,
    **fields: Any,
) -> CallToolResult:
    """Draw what the fields of a `GenerateRequest` say, those that are None left open."""
    given = {name: value for name, value in fields.items() if value is not None}
    if files := {role: file for role, file in (inputs or {}).items() if file is not None}:
        given["inputs"] = files
    if prompts := {role: text for role, text in (layer_prompts or {}).items() if text}:
        given["layer_prompts"] = prompts
    request = await anyio.to_thread.run_sync(partial(_request, services(ctx), given, recipe_from))
    return await run(ctx, request, what, wait_seconds=wait_seconds, preview=preview)


def _request(known: Services, given: Mapping[str, Any], recipe_from: str | None) -> GenerateRequest:
    """The request for the fields given; reads files, so it belongs in a thread."""
    from layerdiffuse_mcp.recipes.recipe import read_recipe, request_from

    with known.contents.keeping() as keep:
        if recipe_from is None:
            request = validated(GenerateRequest, _kept(known, given, keep))
        else:
            with known.readable(recipe_from) as opened:
                recipe = read_recipe(opened.file, known.settings.max_pixels)
            changes = {name: value for name, value in given.items() if name != "task"}
            request = request_from(recipe, _kept(known, changes, keep), lambda wanted: known.find(wanted, keep))
    return request


def _kept(known: Services, given: Mapping[str, Any], keep: Keep) -> dict[str, Any]:
    """The same fields with copies of the pictures that they name."""
    pictures: dict[str, Any] = {name: known.picture(given[name], keep) for name in ("image", "mask") if name in given}
    if "inputs" in given:
        pictures["inputs"] = {role: known.picture(file, keep) for role, file in given["inputs"].items()}
    return {**given, **pictures}


def _task_of(tool: str, inputs: Files, tasks: Mapping[frozenset[Role], Task]) -> Task:
    """The task that the pictures given make."""
    given: frozenset[Role] = frozenset(role for role, file in inputs.items() if file is not None)
    if given not in tasks:
        ways = " or ".join(" and ".join(sorted(roles)) for roles in tasks)
        got = " and ".join(sorted(given)) or "no picture"
        raise InvalidRequest(f"{tool} takes {ways}, and got {got}. Give paths or image ids of exactly those.")
    return tasks[given]
