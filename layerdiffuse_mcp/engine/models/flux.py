"""How FLUX.1-dev computes: diffusers' `FluxPipeline` on our components, with the layer file's LoRA on its transformer.

    model = Flux(entry.name, Components(checkpoint, placement, files))
    model.use_layer(plan.stages[0])                     # a patch, as of every layer file: no library for adapters
    latents = model.run(**model.arguments(plan, prompts, negative, pictures), ...)

A picture is redrawn by the same pipeline: from its latent under as much noise as the first sigma says that is left of
the schedule, with the numbers of diffusers' `FluxImg2ImgPipeline`.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from layerdiffuse_mcp.api.plan import DrawPlan
from layerdiffuse_mcp.api.requests import Stage
from layerdiffuse_mcp.engine.models.pipeline_model import PipelineBase
from layerdiffuse_mcp.engine.models.whole import see_transformers
from layerdiffuse_mcp.engine.types import Encode, LayerLatent, Pictures
from layerdiffuse_mcp.engine.weights.lora import read_lora
from layerdiffuse_mcp.families.registry import METHODS

if TYPE_CHECKING:
    from diffusers.pipelines.flux.pipeline_flux import FluxPipeline


class Flux(PipelineBase):
    """Words to the latent of a picture with alpha."""

    def make(self, networks: Mapping[str, Any]) -> "FluxPipeline":
        """The pipeline with the folder's scheduler and tokenizers."""
        see_transformers(self.spec.extra)
        from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
        from transformers import CLIPTokenizer, T5Tokenizer

        scheduler: Any = FlowMatchEulerDiscreteScheduler.from_pretrained(self.folder / "scheduler")
        tokenizer = CLIPTokenizer.from_pretrained(self.folder / "tokenizer")
        tokenizer_2 = T5Tokenizer.from_pretrained(self.folder / "tokenizer_2")
        return FluxPipeline(scheduler=scheduler, tokenizer=tokenizer, tokenizer_2=tokenizer_2, **networks)

    def use_layer(self, stage: Stage) -> None:
        """As `types.PipelineModel`: the file is read once, and stays on until another weight is asked for."""
        denoiser = self.spec.denoiser
        stack = self.components.stack(denoiser)
        patch = self.components.read(
            METHODS[stage.method].file, lambda path: read_lora(path).patches({denoiser: stack.module})[denoiser]
        )
        stack.set(patch.scaled(stage.layer_weight))

    def noise_shape(self, plan: DrawPlan) -> tuple[int, ...]:
        """One latent."""
        return (1, *self.latent.shape(plan.width, plan.height))

    def calls(self, plan: DrawPlan) -> int:
        """As `types.PipelineModel`."""
        return len(_sigmas(plan))

    def pack(self, noise: Tensor) -> Tensor:
        """In patches, as the pipeline's own."""
        return self.pipeline._pack_latents(noise, len(noise), *noise.shape[2:])

    def unpack(self, latents: Tensor, plan: DrawPlan) -> Tensor:
        """As `types.PipelineModel`."""
        factor = self.pipeline.vae_scale_factor
        return self.pipeline._unpack_latents(latents, plan.height, plan.width, factor)[:, None]

    def redrawn(self, noise: Tensor, encode: Encode, plan: DrawPlan) -> Tensor:
        """As `types.PipelineModel`."""
        from diffusers.pipelines.flux.pipeline_flux import calculate_shift

        scheduler, (height, width) = self.pipeline.scheduler, noise.shape[-2:]
        names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        shift = calculate_shift(height * width // self.latent.patch**2, *(scheduler.config[name] for name in names))
        scheduler.set_timesteps(sigmas=_sigmas(plan), mu=shift, device=noise.device)
        sigma = scheduler.sigmas[0].to(noise)
        return sigma * noise + (1 - sigma) * encode().to(noise)

    def arguments(
        self, plan: DrawPlan, prompts: Sequence[str], negative: Sequence[str], pictures: Pictures
    ) -> dict[str, Any]:
        """The prompts and the settings of the plan's one stage; there is nothing to guide away from."""
        [stage] = plan.stages
        self.components.onload("text")  # the pipeline puts its tokens where it finds the text encoders
        return {
            "width": plan.width,
            "height": plan.height,
            "prompt": [*prompts],
            "sigmas": _sigmas(plan),
            "guidance_scale": stage.guidance_scale,
        }

    def layers(self, latents: Tensor, plan: DrawPlan) -> list[LayerLatent]:
        """The picture."""
        [role] = METHODS[plan.stages[0].method].outputs
        return [LayerLatent(latents[0], role=role)]


def _sigmas(plan: DrawPlan) -> Any:
    """The noise levels before the scheduler shifts them, from the one that a redrawing begins at."""
    [stage] = plan.stages
    left = min(stage.steps * plan.strength, stage.steps) if plan.redraws else stage.steps
    return np.linspace(1.0, 1 / stage.steps, stage.steps)[int(stage.steps - left) :]
