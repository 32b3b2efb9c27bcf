"""Stage 3: the base: an SD1.5-shaped UNet and its CLIP text encoder, trained together on latents of ordinary pictures.

Noise prediction on SD's scaled-linear betas, 10% empty captions for guidance, min-SNR weighting (arXiv:2303.09556),
EMA weights.

    python -m training.unet --work build/training --minutes 30
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor

from layerdiffuse_mcp.engine.text.clip import TextEncoder
from training.backgrounds import KINDS
from training.captions import Tokens
from training.common import Average, Run, autocast, device, stage_parser
from training.concepts import with_article
from training.latents import Drawn, held_latents, ordinary_latents
from training.optimizer import Muon
from training.text import WIDTH, contexts, text_encoder, warm_up
from training.vocabulary import LOOKS, vocabulary

UNET = {
    "sample_size": 16,
    "block_out_channels": (64, 96, 96, 64),
    "attention_head_dim": (2, 3, 3, 2),
    "cross_attention_dim": WIDTH,
    "layers_per_block": 2,
    "norm_num_groups": 8,
}
BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
SIGNAL = torch.cumprod(1 - BETAS, 0).float()  # alpha-bar
HELD_EVERY = 100  # steps
EMPTY_SHARE, MIN_SNR, BATCH = 0.1, 5.0, 32  # the batch of each process


def networks() -> tuple[UNet2DConditionModel, TextEncoder]:
    torch.manual_seed(3)
    return UNet2DConditionModel(**UNET), text_encoder()


def noised(
    latents: torch.Tensor, generator: torch.Generator, together: int = 1
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random steps, one for every `together` rows: (noisy latents, steps, the noise, the loss weights), all where the
    training runs.
    """
    count = latents.shape[0] // together
    # one step from each of `count` parts of the schedule: less noise in the loss than independent draws;
    # more of them where the picture is mostly noise, since what is drawn is decided there
    share = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    steps = (share**0.75 * 1000).long().clamp(max=999).repeat_interleave(together)
    noise = torch.randn(latents.shape, generator=generator)
    signal = SIGNAL[steps].view(-1, 1, 1, 1)
    ratio = SIGNAL[steps] / (1 - SIGNAL[steps])
    noisy = signal.sqrt() * latents + (1 - signal).sqrt() * noise
    found = noisy, steps, noise, ratio.clamp(max=MIN_SNR) / ratio
    return tuple(part.to(device()) for part in found)  # type: ignore[return-value]


class Ordinary:
    """Draws batches of (latents, token rows) of ordinary pictures."""

    def __init__(self, work: Path) -> None:
        state = ordinary_latents(work)
        self.latents, self.kinds = state["latents"], state["kind"]
        self.subjects = vocabulary(work)
        self.draw = Drawn(state["subject"], state["look"], state["kind"])
        self.names = list(KINDS)
        self.tokens = Tokens()

    def batch(self, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        chosen, texts = [], []
        for row, number, place in self.draw(rng, BATCH):
            kind = int(self.kinds[row])
            said = self.names[kind] if rng.random() < (0.25 if kind == 0 else 0.85) else None
            text = self.subjects[number].caption(rng, LOOKS[place], said)
            texts.append("" if rng.random() < EMPTY_SHARE else text)
            chosen.append(row)
        return self.latents[chosen].float(), self.tokens(texts)


class Held:
    """The error of the noise on pictures that are held out, under the same noise each time."""

    def __init__(self, work: Path, text: TextEncoder) -> None:
        latents = held_latents(work)["latents"].float()
        noisy, steps, noise, _ = noised(latents, torch.Generator().manual_seed(20))
        tokens = Tokens()([with_article(subject.words[0]) for subject in vocabulary(work)]).to(device())
        with torch.no_grad():
            context = torch.cat([contexts(text, part) for part in tokens.split(BATCH)])
        self.batches = [*zip(*(part.split(BATCH) for part in (noisy, steps, context, noise)), strict=True)]
        self.count = len(latents)

    @torch.no_grad()
    def error(self, unet: UNet2DConditionModel) -> float:
        """The mean squared error."""
        total = 0.0
        for noisy, steps, context, noise in self.batches:
            with autocast():
                predicted = unet(noisy, steps, context).sample.float()
            total += float(((predicted - noise) ** 2).mean((1, 2, 3)).sum())
        return total / self.count


def train(work: Path, minutes: float, rate: float) -> None:
    source = Ordinary(work)
    unet, text = networks()
    if not (work / "unet.pt").exists():
        warm_up(text, source.subjects)
    text.requires_grad_(False)
    both = torch.nn.ModuleDict({"unet": unet, "text": text}).to(device())
    optimizer = Muon(both, rate, ratio=8.0)
    average = Average(both, 0.998)
    run = Run(work, "unet", minutes=minutes, rate=rate, warmup=150)
    run.begin(both, optimizer, average)
    unet.set_attn_processor(AttnProcessor())  # plain products: backward of the fused attention is slow on a CPU
    rng, generator = np.random.default_rng(run.seed), torch.Generator().manual_seed(run.seed)
    held, averaged = Held(work, text), deepcopy(unet).requires_grad_(False)

    def measured() -> None:
        """Logs how the averaged weights do on held-out pictures."""
        averaged.load_state_dict(
            {name.removeprefix("unet."): value for name, value in average.values.items() if name.startswith("unet.")}
        )
        run.note(held=held.error(averaged))

    measured()
    for _ in run.steps(optimizer):
        latents, tokens = source.batch(rng)
        noisy, steps, noise, weight = noised(latents, generator)
        with autocast():
            with torch.no_grad():
                context = contexts(text, tokens.to(device()))
            predicted = unet(noisy, steps, context).sample.float()
        error = ((predicted - noise) ** 2).mean((1, 2, 3))
        loss = (error * weight).mean()
        run.update(both, optimizer, loss)
        average.update(both)
        run.log(loss=loss.detach(), error=error.detach().mean())
        run.keep(every=20)
        if run.step % HELD_EVERY == HELD_EVERY - 1:
            measured()
    measured()
    run.keep()


def load(work: Path) -> tuple[UNet2DConditionModel, TextEncoder]:
    """The trained base (EMA weights), frozen."""
    unet, text = networks()
    both = torch.nn.ModuleDict({"unet": unet, "text": text})
    both.load_state_dict(torch.load(work / "unet.pt", map_location="cpu", weights_only=True)["average"])
    both.requires_grad_(False).eval().to(device())
    return unet, text


if __name__ == "__main__":
    train(**vars(stage_parser(__doc__, minutes=30, rate=1e-3).parse_args()))
