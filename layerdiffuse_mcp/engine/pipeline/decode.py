"""Step 5 of a stage: every frame to pixels, the transparent one on to RGBA.

layers = [*decode(latents, method, model, batch, edit, on_view)]
"""

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from layerdiffuse_mcp.engine.models.stable_diffusion import StableDiffusion
from layerdiffuse_mcp.engine.pipeline.batch import Result
from layerdiffuse_mcp.engine.pipeline.conditions import original_outside
from layerdiffuse_mcp.engine.transparency.codec import codec_of
from layerdiffuse_mcp.engine.transparency.decode import to_rgb8
from layerdiffuse_mcp.engine.types import Edit, LayerImage
from layerdiffuse_mcp.families.spec import LayerMethod, Role


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
    width, height = batch[0].plan.width, batch[0].plan.height
    frames: list[tuple[int, Role]] = [(result.seed, role) for result in batch for role in method.outputs]
    for latent, (seed, role) in zip(latents, frames, strict=True):
        if role == method.transparent:
            pixels = codec_of(model).decode(latent, on_view)
            if edit is not None and edit.mask is not None:
                pixels = original_outside(edit.mask, edit.image, pixels)
        else:
            pixels = to_rgb8(model.decode_latents(latent[None])[0])
        yield LayerImage(role, seed, pixels[:height, :width], latent.float().cpu())
