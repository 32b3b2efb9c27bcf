"""A base that a diffusers pipeline draws with: the pipeline on our components, so that placing them stays ours.

    class Painter(PipelineBase):            # a family's file; its card names the class, and those of the networks
        def make(self, networks):
            return PainterPipeline(**networks, scheduler=DDIMScheduler.from_pretrained(self.folder / "scheduler"))

        def noise_shape(self, plan):
            return (3, *self.latent.shape(plan.width, plan.height))

        def layers(self, latents, plan):
            return [LayerLatent(latent, name) for latent, name in zip(latents, NAMES)]

The pipeline must not place networks itself, nor decode: what it is asked for is latents.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from layerdiffuse_mcp.api.plan import DrawPlan
from layerdiffuse_mcp.api.requests import Stage
from layerdiffuse_mcp.engine.models.model import Model
from layerdiffuse_mcp.engine.types import Encode, LayerLatent, Pictures
from layerdiffuse_mcp.errors import InvalidRequest

NOTHING = " "
"""A negative prompt that says nothing, where guidance needs one."""


class PipelineBase(Model, ABC):
    """What a `types.PipelineModel` needs, but for what its family alone knows."""

    @property
    def folder(self) -> Path:
        """The base's diffusers folder."""
        return self.components.checkpoint.path

    @cached_property
    def pipeline(self) -> Any:
        """The family's pipeline, made once; a network of it is on the device while it computes."""
        pipeline = self.make({name: self.components.watch(name) for name in self.spec.names()})
        pipeline.set_progress_bar_config(disable=True)
        return _placed(pipeline, self.placement.device)

    @abstractmethod
    def make(self, networks: Mapping[str, Any]) -> Any:
        """The pipeline of these networks, by the names on the card, and of what else lies in `folder`."""

    @abstractmethod
    def noise_shape(self, plan: DrawPlan) -> tuple[int, ...]:
        """(frames, C, h, w), the shape of the noise that one result starts from; the plan's size is that drawn."""

    @abstractmethod
    def layers(self, latents: Tensor, plan: DrawPlan) -> Sequence[LayerLatent]:
        """What one result's latents (frames, C, h, w) are, from the bottom up."""

    def decoded(self, plan: DrawPlan) -> int:
        """How many layers of one result are decoded."""
        return self.noise_shape(plan)[0]

    def use_layer(self, stage: Stage) -> None:
        """Put the layer file of a stage on the networks; here there is none."""

    def calls(self, plan: DrawPlan) -> int:
        """How many steps the pipeline does."""
        return plan.stages[0].steps

    def redrawn(self, noise: Tensor, encode: Encode, plan: DrawPlan) -> Tensor:
        """What is begun with, of noise (B, *noise_shape), to edit a picture; here there is none."""
        raise InvalidRequest(f"{self.spec.title} models change no picture. Leave image out.")

    def pack(self, noise: Tensor) -> Tensor:
        """Noise (B, *noise_shape) as the pipeline takes it for `latents`."""
        return noise

    def unpack(self, latents: Tensor, plan: DrawPlan) -> Tensor:
        """The pipeline's latents as (B, frames, C, h, w)."""
        return latents

    def arguments(
        self, plan: DrawPlan, prompts: Sequence[str], negative: Sequence[str], pictures: Pictures
    ) -> dict[str, Any]:
        """Prompts and settings under the names that most pipelines have for them."""
        [stage] = plan.stages
        return {
            "width": plan.width,
            "height": plan.height,
            "prompt": [*prompts],
            "negative_prompt": [*negative],
            "num_inference_steps": stage.steps,
            "guidance_scale": stage.guidance_scale,
        }

    def run(self, **arguments: Any) -> Tensor:
        """The latents that the pipeline returns."""
        return self.pipeline(**arguments)[0]


def _placed(pipeline: Any, device: torch.device) -> Any:
    """The pipeline on `device`, wherever its networks are just then: it asks the first one otherwise."""
    here = property(lambda _: device)
    kind = type(pipeline)
    pipeline.__class__ = type(kind.__name__, (kind,), {"device": here, "_execution_device": here})
    return pipeline
