"""The story of a stage: prompts, conditions, latents, denoising, decoding.

    layers = draw_stage(stage, model, batch, pictures, edit, given, referred, meter, show)

Everything here works on a whole batch and knows no file: what comes back are arrays, what goes in are arrays. Each step
is a module of this folder, whose functions keep nothing.

What depends on the batch: the noise does not, on any device. Texts, the autoencoder and the transparent decoder work on
one picture at a time. The denoiser works on all of a batch, and its convolutions and smallest matrix products sum in an
order that the libraries choose by the number of rows: so pixels agree within 1 of 255, alone or in a batch, on one
device and version.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from layerdiffuse_mcp.api.requests import Stage
from layerdiffuse_mcp.engine.layers.adapters import ADAPTERS
from layerdiffuse_mcp.engine.layers.conditions import ConditionPictures
from layerdiffuse_mcp.engine.layers.controlnet import Followed
from layerdiffuse_mcp.engine.layers.ip_adapter import Referred
from layerdiffuse_mcp.engine.models.stable_diffusion import StableDiffusion
from layerdiffuse_mcp.engine.pipeline import prompts
from layerdiffuse_mcp.engine.pipeline.batch import Result, noise_source, pixels_of_result, tiles_of
from layerdiffuse_mcp.engine.pipeline.conditions import fitted, fitted_mask
from layerdiffuse_mcp.engine.pipeline.decode import decode
from layerdiffuse_mcp.engine.pipeline.denoise import denoise
from layerdiffuse_mcp.engine.pipeline.latents import prepare
from layerdiffuse_mcp.engine.pipeline.previews import Show
from layerdiffuse_mcp.engine.pipeline.progress import DECODED_VIEW, DENOISING, NETWORK_STEP, REDRAWING, Meter
from layerdiffuse_mcp.engine.transparency.decode import VIEWS
from layerdiffuse_mcp.engine.types import Edit, LayerImage, Pictures
from layerdiffuse_mcp.families.registry import METHODS
from layerdiffuse_mcp.families.spec import Role
from layerdiffuse_mcp.images.alpha import Bytes


def draw_stage(
    stage: Stage,
    model: StableDiffusion,
    batch: Sequence[Result],
    pictures: Mapping[Role, Sequence[Bytes]],
    edit: Edit | None,
    given: Pictures,
    referred: Referred | None,
    meter: Meter,
    show: Show,
) -> list[LayerImage]:
    """One stage for a batch of results: the layers of the first, then those of the second, ...

    batch: results whose plans differ only in prompts and seeds. pictures: those that there are by now, by role, one a
    result. given: those that controls follow, and where a reference acts. show: sees each step.
    """
    method, plan = METHODS[stage.method], batch[0].plan  # in what is used of it below, all plans are alike
    tiles = tiles_of(plan, model.latent)
    count = len(tiles.boxes)

    # 1. prompts
    texts = prompts.joined([prompts.encode(result.plan, stage, model) for result in batch], method.frames)

    # 2. conditions: the pictures that the method starts from, as its adapter takes them; those that are followed
    condition: Tensor | None = None
    if method.inputs:
        chosen = [[pictures[role][index] for role in method.inputs] for index in range(len(batch))]
        seeds = [result.seed for result in batch]
        inputs = ConditionPictures(
            chosen,
            seeds,
            *tiles.size,
            plan.resize_mode,
            noise_source(plan),
            plan.tiling,
            meter.tiles("encoding what is given", count),
        )
        condition = ADAPTERS[method.adapter].condition(model, inputs)

    followed = [
        Followed.of(settings, fitted(picture, *tiles.size, plan.resize_mode))
        for settings, picture in zip(plan.control, given.control, strict=True)
    ]
    mask = given.reference_mask
    where = None if mask is None else fitted_mask(mask, *tiles.size, plan.resize_mode)

    # 3. latents: noise and its levels, and what is redrawn
    start = prepare(stage, method, model, batch, edit, meter.tiles("encoding", count))

    # 4. denoising: in the tiles in which something is drawn
    asked = tiles.holding(start.inpainting.mask if start.inpainting else None, model.latent.downscale)
    steps = meter.steps(DENOISING if count == 1 else REDRAWING, start.levels.steps, count * NETWORK_STEP * len(batch))

    def on_step(_step: int, _total: int, _x: Tensor, denoised: Tensor) -> None:
        file = show(denoised, method.frames)
        steps.next(note=f"preview {file}" if file else "")

    pixels = len(batch) * pixels_of_result(plan, model.latent)
    on_tile = meter.tiles(f"redrawing in {start.levels.steps} steps", len(asked))
    latents = denoise(
        stage, method, model, texts, condition, start, tiles, asked, pixels, on_step, on_tile, followed, referred, where
    )

    # 5. decoding
    transparent = [role for role in method.outputs if role == method.transparent]
    views = meter.steps("decoding", count * len(VIEWS) * len(transparent) * len(batch), DECODED_VIEW)
    return list(decode(latents, method, model, batch, edit, views.next))
