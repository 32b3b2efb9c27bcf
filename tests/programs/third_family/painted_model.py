"""How the third family computes: its networks and pipeline, as a library has them, and its model file.

`write(folder)` makes a base of it, of few and random weights.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, EulerAncestralDiscreteScheduler
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from layerdiffuse_mcp.api.plan import DrawPlan
from layerdiffuse_mcp.engine.models.pipeline_model import PipelineBase
from layerdiffuse_mcp.engine.types import LayerLatent

NAMES = ("sky", "far hills", "a bird/plane")
"""Of the layers, from the bottom up."""


class Words(ModelMixin, ConfigMixin):
    """A text encoder: letters in, one vector out."""

    @register_to_config
    def __init__(self, width: int = 8):
        super().__init__()
        self.letters = nn.Embedding(256, width)
        self.register_buffer("decay", torch.arange(64) * -0.1, persistent=False)  # in no file, as positions are

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Texts to (B, width)."""
        read = [list(text.encode()[: len(self.decay)]) or [0] for text in texts]
        letters = [self.letters(torch.tensor(codes, device=self.decay.device)) for codes in read]
        return torch.stack([(self.decay.exp()[: len(one), None] * one).mean(0) for one in letters])


class Painter(ModelMixin, ConfigMixin):
    """A denoiser of all layers at once."""

    @register_to_config
    def __init__(self, layers: int = 3, channels: int = 4, width: int = 8, sample_size: int = 32):
        super().__init__()
        self.first = nn.Conv2d(layers * channels, width, 3, padding=1)
        self.text = nn.Linear(width, width)
        self.transformer_blocks = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(3))
        self.last = nn.Conv2d(width, layers * channels, 3, padding=1)

    def forward(self, x: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        """x (B, layers, channels, h, w), text (B, width): the noise in x."""
        hidden = self.first(x.flatten(1, 2)) + self.text(text)[..., None, None] + timestep / 1000
        for block in self.transformer_blocks:
            hidden = hidden + block(hidden).tanh()
        return self.last(hidden).reshape(x.shape)


class PaintedPipeline(DiffusionPipeline):
    """Text to a stack of latents, in the shape of diffusers' own pipelines."""

    def __init__(self, words: Words, painter: Painter, vae: AutoencoderKL, scheduler: EulerAncestralDiscreteScheduler):
        super().__init__()
        self.register_modules(words=words, painter=painter, vae=vae, scheduler=scheduler)
        self.started_from: Tensor | None = None

    @torch.no_grad()
    def __call__(
        self,
        prompt: list[str],
        negative_prompt: list[str],
        num_inference_steps: int,
        guidance_scale: float,
        width: int,
        height: int,
        latents: Tensor,
        generator: list[torch.Generator],
        callback_on_step_end: Callable[..., dict[str, Tensor]],
        callback_on_step_end_tensor_inputs: Sequence[str],
        output_type: str,
        return_dict: bool,
    ) -> tuple[Tensor]:
        """(B, layers, channels, h, w)."""
        assert (output_type, return_dict, [*callback_on_step_end_tensor_inputs]) == ("latent", False, ["latents"])
        self.started_from = latents
        texts = self.words([*prompt, *negative_prompt])
        self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        latents = latents * self.scheduler.init_noise_sigma
        for step, timestep in enumerate(self.scheduler.timesteps):
            x = self.scheduler.scale_model_input(latents, timestep)
            positive, negative = self.painter(torch.cat([x, x]), timestep, texts).chunk(2)
            noise = negative + guidance_scale * (positive - negative)
            latents = self.scheduler.step(noise, timestep, latents, generator=generator, return_dict=False)[0]
            latents = callback_on_step_end(self, step, timestep, {"latents": latents}).pop("latents", latents)
        return (latents,)


class PaintedLayers(PipelineBase):
    """The model file: all that the product has to be told of the family beside its card."""

    def make(self, networks: Mapping[str, Any]) -> PaintedPipeline:
        """The pipeline, with the folder's scheduler."""
        return PaintedPipeline(
            **networks, scheduler=EulerAncestralDiscreteScheduler.from_pretrained(self.folder / "scheduler")
        )

    def noise_shape(self, plan: DrawPlan) -> tuple[int, ...]:
        """A latent a layer."""
        return (len(NAMES), *self.latent.shape(plan.width, plan.height))

    def layers(self, latents: Tensor, plan: DrawPlan) -> list[LayerLatent]:
        """The layers by name; the last lies in a box of the left upper quarter."""
        *behind, front = (LayerLatent(latent, name) for latent, name in zip(latents, NAMES, strict=True))
        _, height, width = front.latent.shape
        quarter = front.latent[:, : height // 2, : width // 2]
        box = (0, 0, width // 2 * self.latent.downscale, height // 2 * self.latent.downscale)
        return [*behind, LayerLatent(quarter, front.name, box=box)]


def write(folder: Path) -> Path:
    """A base in diffusers' folder layout, as `save_pretrained` writes it."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    vae = AutoencoderKL(
        in_channels=4, out_channels=4, latent_channels=4, block_out_channels=(8, 8), norm_num_groups=4,
        scaling_factor=0.5, **blocks,
    )  # fmt: skip
    PaintedPipeline(Words(), Painter(), vae, EulerAncestralDiscreteScheduler()).save_pretrained(folder)
    return folder
