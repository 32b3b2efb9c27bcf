"""Drawn layers as files: each picture with its facts, inside it the recipe that draws it alone; its latent beside it.

    files = encoded(plan, model, layers, licences)      # of one plan, the best results first
    facts_of(layer).alpha                               # of a layer that no plan drew

What is written here is content: names and folders on disk are the writer's (`outputs/writer.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from operator import itemgetter
from typing import Any

from layerdiffuse_mcp.api.outcome import VERDICTS, EncodedFile, PictureFacts
from layerdiffuse_mcp.api.plan import DrawPlan
from layerdiffuse_mcp.engine.transparency import latent_file as latents
from layerdiffuse_mcp.engine.types import DiffusionModel, LayerImage
from layerdiffuse_mcp.images.alpha import alpha_facts
from layerdiffuse_mcp.images.export import picture_bytes
from layerdiffuse_mcp.images.fitting import fitted
from layerdiffuse_mcp.images.verdict import Asked, judge
from layerdiffuse_mcp.outputs.names import file_name
from layerdiffuse_mcp.recipes import infotext
from layerdiffuse_mcp.recipes.a1111 import infotext_of
from layerdiffuse_mcp.recipes.recipe import BASE, SHORT, recipe_of
from layerdiffuse_mcp.text.emphasis import extract_loras
from layerdiffuse_mcp.wording import printable


def encoded(
    plan: DrawPlan, model: DiffusionModel, drawn: Sequence[LayerImage], licences: Mapping[str, str]
) -> list[EncodedFile]:
    """A plan's pictures that are wanted, and their latents if these are; the best results first.

    Inside each is the recipe that draws it alone, if its metadata is wanted.
    """
    files: list[EncodedFile] = []
    base = model.weights[BASE]
    for one in drawn:
        if plan.want and one.role not in plan.want:
            continue
        alone = plan.model_copy(update={"seed": one.seed, "count": 1, "save_latent": False})
        text = infotext.format(infotext_of(alone.as_drawn, model_hash=base and base[:SHORT]))
        whole = _fitted(one, plan)
        picture = facts_of(whole, plan, judged=one)
        recipe = drawing_recipe(alone, model, licences) | {"role": picture.label}
        said: dict[str, Any] = {"recipe": recipe, "parameters": text} if plan.metadata == "full" else {}
        words = plan.name or extract_loras(plan.prompt)[0] or picture.label
        name = file_name(words, one.seed, picture.label, f".{plan.format}")
        files.append(EncodedFile(name=name, data=picture_bytes(whole.pixels, plan.format, **said), picture=picture))
        if plan.save_latent:
            height, width = one.pixels.shape[:2]
            saved = latents.SavedLatent(one.latent, width, height, model.spec.id, model.name, one.seed)
            name = file_name(words, one.seed, picture.label, latents.SUFFIX)
            files.append(EncodedFile(name=name, data=latents.latent_bytes(saved)))
    return _best_first(files)


def drawing_recipe(plan: DrawPlan, model: DiffusionModel, licences: Mapping[str, str]) -> dict[str, Any]:
    """What draws a plan's pictures again, with the weights that the model has them of."""
    placement = model.placement
    return recipe_of(
        plan,
        weights=model.weights,
        licences=licences,
        device=placement.device.type,
        dtype=str(placement.dtype).removeprefix("torch."),
    )


def facts_of(layer: LayerImage, plan: DrawPlan | None = None, judged: LayerImage | None = None) -> PictureFacts:
    """What is known of a layer that a plan drew, or that was decoded; the verdict is on `judged`, as drawn, if any."""
    height, width, channels = layer.pixels.shape
    alpha = alpha_facts(layer.pixels) if channels == 4 else None
    drawn = alpha if judged is None or judged is layer or alpha is None else alpha_facts(judged.pixels)
    drifted = (judged or layer).drifted
    asked = Asked(plan.prompt, plan.unknown_subject, drifted) if plan else Asked()
    kind = layer.role or layer.name
    verdict, reason = judge(drawn, asked, kind)
    if judged is not None and reason and judge(alpha, asked, kind) != (verdict, reason):
        reason = f"as drawn at {judged.pixels.shape[1]}x{judged.pixels.shape[0]}, {reason}"
    return PictureFacts(
        role=layer.role,
        name=None if layer.role else printable(layer.name, 80) or f"layer {layer.order}",
        box=layer.box,
        width=width,
        height=height,
        seed=layer.seed,
        alpha=alpha,
        verdict=verdict,
        reason=reason,
    )


def _fitted(layer: LayerImage, plan: DrawPlan) -> LayerImage:
    """A layer of a plan's result at the size that was asked for; the latent stays as it was drawn."""
    if plan.drawn is None:
        return layer
    pixels, box = fitted(layer.pixels, layer.box, plan.as_drawn.result, plan.result, plan.fit)
    return replace(layer, pixels=pixels, box=box)


def _best_first(files: Sequence[EncodedFile]) -> list[EncodedFile]:
    """The files of each result together, results by their worst picture; those that are as good stay in order."""
    results: list[tuple[int, list[EncodedFile]]] = []
    seed: int | None = None
    for file in files:
        if file.picture is not None and file.picture.seed != seed:
            seed = file.picture.seed
            results.append((0, []))
        worst, together = results[-1]
        verdict = file.picture.verdict if file.picture else None
        results[-1] = max(worst, VERDICTS.index(verdict) if verdict else 0), [*together, file]
    return [file for _, together in sorted(results, key=itemgetter(0)) for file in together]
