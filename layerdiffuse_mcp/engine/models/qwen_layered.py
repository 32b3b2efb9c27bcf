"""How Qwen-Image-Layered computes: diffusers' `QwenImageLayeredPipeline` on our components.

    model = QwenLayered(entry.name, Components(checkpoint, placement, files))

It draws one latent more than there are layers: the first is the whole picture once more, and is dropped. Only one
picture at a time: diffusers 0.42.1 counts the frames of a batch before it drops that one, and sorts them wrongly.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from PIL import Image
from torch import Tensor

from layerdiffuse_mcp.api.plan import DrawPlan
from layerdiffuse_mcp.engine.models.pipeline_model import NOTHING, PipelineBase
from layerdiffuse_mcp.engine.models.whole import see_transformers
from layerdiffuse_mcp.engine.types import LayerLatent, Pictures

if TYPE_CHECKING:
    from diffusers.pipelines.qwenimage.pipeline_qwenimage_layered import QwenImageLayeredPipeline


class _LastStep(Exception):
    """The latents that a pipeline would return."""

    def __init__(self, latents: Tensor) -> None:
        self.latents = latents


class QwenLayered(PipelineBase):
    """A picture and what it shows, to latents of its layers."""

    video: ClassVar[bool] = True

    def make(self, networks: Mapping[str, Any]) -> "QwenImageLayeredPipeline":
        """The pipeline without its processor, which only captions pictures that come without a prompt."""
        see_transformers(self.spec.extra)
        from diffusers.pipelines.qwenimage.pipeline_qwenimage_layered import QwenImageLayeredPipeline
        from transformers import Qwen2Tokenizer

        scheduler: Any = FlowMatchEulerDiscreteScheduler.from_pretrained(self.folder / "scheduler")
        tokenizer = Qwen2Tokenizer.from_pretrained(self.folder / "tokenizer")
        unused: Any = None
        return QwenImageLayeredPipeline(scheduler=scheduler, tokenizer=tokenizer, processor=unused, **networks)

    def noise_shape(self, plan: DrawPlan) -> tuple[int, ...]:
        """A latent a layer, and before them one of the whole; sides are even, for the transformer sees 2x2 patches."""
        factor = self.pipeline.vae_scale_factor
        sides = (2 * (side // (2 * factor)) for side in (plan.height, plan.width))
        return (plan.layers + 1, self.latent.channels, *sides)

    def decoded(self, plan: DrawPlan) -> int:
        """The layers alone."""
        return plan.layers

    def pack(self, noise: Tensor) -> Tensor:
        """In patches, as the pipeline's own."""
        count, frames, channels, height, width = noise.shape
        return self.pipeline._pack_latents(noise, count, channels, height, width, frames)

    def unpack(self, latents: Tensor, plan: DrawPlan) -> Tensor:
        """As `types.PipelineModel`."""
        factor = self.pipeline.vae_scale_factor
        unpacked = self.pipeline._unpack_latents(latents, plan.height, plan.width, plan.layers, factor)
        return unpacked.transpose(1, 2)

    def arguments(
        self, plan: DrawPlan, prompts: Sequence[str], negative: Sequence[str], pictures: Pictures
    ) -> dict[str, Any]:
        """The picture as it was given: the pipeline makes it of the size that the planner knows."""
        [stage], [prompt], [unwanted] = plan.stages, prompts, negative
        return {
            "image": Image.fromarray(np.ascontiguousarray(pictures.layers["blended"])),
            "prompt": [prompt],
            "negative_prompt": [unwanted or NOTHING],
            "num_inference_steps": stage.steps,
            "true_cfg_scale": stage.guidance_scale,
            "cfg_normalize": True,
            "layers": plan.layers,
            "resolution": self.spec.native_size,
        }

    def run(self, **arguments: Any) -> Tensor:
        """The latents of the last step: the pipeline of diffusers 0.42.1 fails where it is to return them."""
        told = arguments.pop("callback_on_step_end")

        def on_step_end(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            changed = told(pipeline, step, timestep, tensors)
            if step + 1 == pipeline.num_timesteps:
                raise _LastStep(tensors["latents"])
            return changed

        try:
            return super().run(callback_on_step_end=on_step_end, **arguments)
        except _LastStep as last:
            return last.latents

    def layers(self, latents: Tensor, plan: DrawPlan) -> list[LayerLatent]:
        """The layers from the bottom up, numbered."""
        return [LayerLatent(latent, f"layer {number}") for number, latent in enumerate(latents[1:], start=1)]
