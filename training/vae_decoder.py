"""Stage 6: the VAE's decoder learns on, on ordinary and on transparent latents alike; its encoder is frozen.

An offset moves latents away from those that the VAE was trained on, and what it then decodes is blurred: 23 dB instead
of 30 on held-out pictures. The transparent decoder starts from that picture, so it is made sharp here. Latents stay as
they are, and with them everything that was learnt on them.

    python -m training.vae_decoder --work build/training --minutes 10
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from training import autoencoder, data, mixing, transparency
from training.backgrounds import bank
from training.common import Average, Run, autocast, device, psnr, stage_parser
from training.optimizer import Muon
from training.pool import Pool, chance

BATCH = {128: 3, 64: 10}  # of each process: whole pictures, and crops in three steps of four
ORDINARY = 0.4  # share of the batches


class Source:
    """Makes batches of latents and what they should be decoded to."""

    def __init__(self, work: Path, generator: torch.Generator) -> None:
        pictures, rows = data.load(work)
        self.pictures = np.array(pictures)[~np.array([row["held_out"] for row in rows])]
        self.backgrounds, _ = bank(400, seed=1)
        self.vae, _ = autoencoder.load(work)
        self.encoder, _ = transparency.load_pair(work)
        self.generator = generator

    @torch.no_grad()
    def batch(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents (B, 4, size / 8, size / 8), fp32, and pictures (B, 3, size, size) in 0..1, fp16."""
        chosen = torch.randint(len(self.pictures), (BATCH[size],), generator=self.generator).numpy()
        if chance(self.generator) < ORDINARY:
            target = autoencoder.ordinary(self.pictures, self.backgrounds, chosen, size, self.generator).to(device())
            with autocast():
                return self.vae.encode(target * 2 - 1).latent_dist.mean.float(), target.half()
        rgba = mixing.to_tensor(self.pictures[chosen])
        if chance(self.generator) < 0.4:
            rgba = mixing.move(rgba, self.generator, scale=(0.7, 1.2))
        rgba = mixing.soften(mixing.crop(rgba, size, self.generator), self.generator, share=0.2).to(device())
        with autocast():
            return transparency.hide(self.vae, self.encoder, rgba)[0].float(), mixing.flattened(rgba).half()


def train(work: Path, minutes: float, rate: float) -> None:
    vae, _ = autoencoder.load(work)
    learning = torch.nn.ModuleDict({"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv})
    learning.requires_grad_(True).train()
    optimizer = Muon(learning, rate)
    average = Average(learning, 0.998)
    run = Run(work, autoencoder.DECODER, minutes=minutes, rate=rate)
    generator = torch.Generator().manual_seed(run.seed)
    pool = Pool(Source(work, generator).batch, generator)  # before the run begins: it encodes only
    run.begin(learning, optimizer, average)
    generator.manual_seed(run.seed)
    for step in run.steps(optimizer):
        latent, target = pool.draw(128 if step % 4 == 0 else 64)
        with autocast():
            output = vae.decoder(vae.post_quant_conv(latent)).float() / 2 + 0.5
        loss = autoencoder.loss_of(output, target.float())
        run.update(learning, optimizer, loss)
        average.update(learning)
        run.log(loss=loss.detach(), db=psnr(((output.detach() - target) ** 2).mean((1, 2, 3))).mean())
        run.keep(every=100)
    run.keep()


if __name__ == "__main__":
    train(**vars(stage_parser(__doc__, minutes=10, rate=1e-3).parse_args()))
