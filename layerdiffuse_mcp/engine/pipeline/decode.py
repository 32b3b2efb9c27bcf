"""Step 5 of a stage: every frame to pixels, the transparent one on to RGBA.

layers = [*decode(latents, method, model, batch, edit, on_view)]
"""

import itertools
from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from layerdiffuse_mcp.api.detail import Tiling
from layerdiffuse_mcp.engine.models.stable_diffusion import StableDiffusion
from layerdiffuse_mcp.engine.pipeline.batch import Result
from layerdiffuse_mcp.engine.pipeline.conditions import original_outside
from layerdiffuse_mcp.engine.sampling.tiles import crop
from layerdiffuse_mcp.engine.transparency.codec import codec_of, pictured
from layerdiffuse_mcp.engine.transparency.decode import to_rgb8
from layerdiffuse_mcp.engine.types import Edit, LayerImage
from layerdiffuse_mcp.families.spec import LayerMethod, Role
from layerdiffuse_mcp.images.alpha import alpha_drift


def decode(
    latents: Tensor,
    method: LayerMethod,
    model: StableDiffusion,
    batch: Sequence[Result],
    edit: Edit | None,
    on_view: Callable[[int], None],
) -> Iterator[LayerImage]:
    """The layers of the first result, then those of the second, ..., at the plan's size.

    latents: (B, C, h, w) as sampled, rows (image, frame). on_view: `on_view(n)` after n more views of the decoder.
    """
    width, height, tiling = batch[0].plan.width, batch[0].plan.height, batch[0].plan.tiling
    frames: list[tuple[int, Role]] = [(result.seed, role) for result in batch for role in method.outputs]
    given = (edit.images, edit.masks) if edit else ((), ())
    originals, masks = (itertools.cycle(pictures or [None]) for pictures in given)
    for latent, original, mask, (seed, role) in zip(latents, originals, masks, frames, strict=False):
        drifted = 0.0
        if role == method.transparent:
            pixels = codec_of(model).decode(latent, on_view, tiling)
            if mask is not None and original is not None:
                pixels = original_outside(mask, original, pixels)
            if tiling is not None and original is not None:
                drifted = alpha_drift(original, pixels)
        else:
            pixels = to_rgb8(_opaque(latent, model, tiling))
        yield LayerImage(role, seed, pixels[:height, :width], latent.float().cpu(), drifted=drifted)


def _opaque(latent: Tensor, model: StableDiffusion, tiling: Tiling | None) -> Tensor:
    """A latent (C, h, w) as the autoencoder alone sees it: (3, H, W), 0..1."""
    downscale = model.latent.downscale
    tiles = pictured(model, latent, tiling)
    return tiles.blend(lambda box: model.decode_latents(crop(latent, box, downscale)[None])[0])
