"""How Qwen-Image-2.1 computes: diffusers' `QwenImage21Pipeline` on our components.

    model = Qwen21(entry.name, Components(checkpoint, placement, files))
    model.arguments(plan, ["a red apple"], [""], pictures)["prompt"]    # what asks for alpha, around the words

Alpha is the autoencoder's fourth channel, and is drawn where the prompt asks for it. A picture to change is read by the
text encoder and by the transformer, from its latent, beside the noise: so there is no strength, and the prompt says
what becomes of it.
"""

import json
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from PIL import Image
from torch import Tensor

from layerdiffuse_mcp.api.plan import DrawPlan
from layerdiffuse_mcp.engine.models.pipeline_model import NOTHING, PipelineBase
from layerdiffuse_mcp.engine.models.whole import see_transformers
from layerdiffuse_mcp.engine.types import Encode, LayerLatent, Pictures
from layerdiffuse_mcp.families.registry import METHODS

if TYPE_CHECKING:
    from diffusers.pipelines.qwenimage21.pipeline_qwenimage21 import QwenImage21Pipeline

ALPHA = "This is an RGBA image with transparency. {} The image has alpha channel and the background is transparent."
"""How its authors ask for transparency."""
ASKS = "rgba image"
"""What a prompt that does so itself has in it."""


class Qwen21(PipelineBase):
    """Words, or words and a picture, to the latent of a picture with alpha."""

    video: ClassVar[bool] = True

    def make(self, networks: Mapping[str, Any]) -> "QwenImage21Pipeline":
        """The pipeline with the folder's scheduler and processor."""
        see_transformers(self.spec.extra)
        from diffusers.pipelines.qwenimage21.pipeline_qwenimage21 import QwenImage21Pipeline

        from layerdiffuse_mcp.engine.models.qwen_processor import read_processor

        scheduler: Any = FlowMatchEulerDiscreteScheduler.from_pretrained(self.folder / "scheduler")
        return QwenImage21Pipeline(scheduler=scheduler, processor=read_processor(self.folder / "processor"), **networks)

    @cached_property
    def sigmas(self) -> list[float] | None:
        """The noise levels that a base's makers set, of one that draws in as many steps."""
        return json.loads((self.folder / "model_index.json").read_text(encoding="utf-8")).get("sample_sigmas")

    def noise_shape(self, plan: DrawPlan) -> tuple[int, ...]:
        """One latent."""
        return (1, *self.latent.shape(plan.width, plan.height))

    def pack(self, noise: Tensor) -> Tensor:
        """A row a pixel of the latent, as the pipeline's own."""
        count, _, channels, height, width = noise.shape
        return self.pipeline._pack_latents(noise, count, channels, height, width)

    def unpack(self, latents: Tensor, plan: DrawPlan) -> Tensor:
        """As `types.PipelineModel`."""
        unpacked = self.pipeline._unpack_latents(latents, plan.height, plan.width, self.latent.downscale)
        return unpacked.transpose(1, 2)

    def redrawn(self, noise: Tensor, encode: Encode, plan: DrawPlan) -> Tensor:
        """As `types.PipelineModel`: the noise itself, for the pipeline reads the picture beside it."""
        return noise

    def arguments(
        self, plan: DrawPlan, prompts: Sequence[str], negative: Sequence[str], pictures: Pictures
    ) -> dict[str, Any]:
        """The picture as large as what is drawn, or larger: its least size is the processor's."""
        [stage] = plan.stages
        least = self.pipeline.processor.image_processor.size["shortest_edge"]  # an area; rounding costs a third of it
        guided = [unwanted or NOTHING for unwanted in negative] if stage.guidance_scale > 1 else None
        edit = pictures.edit
        return {
            "width": plan.width,
            "height": plan.height,
            "prompt": [asked(prompt) for prompt in prompts],
            "negative_prompt": guided,
            "image": edit and [Image.fromarray(np.ascontiguousarray(edit.images[0]))],
            "num_inference_steps": stage.steps,
            "sigmas": self.sigmas if len(self.sigmas or ()) == stage.steps else None,
            "true_cfg_scale": stage.guidance_scale,
            "output_resolution": math.sqrt(max(plan.width * plan.height, 2 * least)),
        }

    def layers(self, latents: Tensor, plan: DrawPlan) -> list[LayerLatent]:
        """The picture."""
        [role] = METHODS[plan.stages[0].method].outputs
        return [LayerLatent(latents[0], role=role)]


def asked(prompt: str) -> str:
    """The prompt with what asks for transparency around it; one that does so itself stays as it is."""
    said = prompt.strip()
    return said if ASKS in said.casefold() else ALPHA.format(said if said.endswith((".", "!", "?")) else f"{said}.")
