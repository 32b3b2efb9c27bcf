"""Stage 4: the offset encoder, which hides a picture's alpha in its latent, on the frozen autoencoder.

It learns one thing: `transparency.wanted`, for any picture, whatever its posterior's deviation.

    python -m training.offset --work build/training --minutes 4
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from training import autoencoder, data, mixing, transparency
from training.common import Average, Run, autocast, device, stage_parser
from training.optimizer import Muon

BATCH, SIZE = 16, 64


def train(work: Path, minutes: float, rate: float) -> None:
    pictures, rows = data.load(work)
    training = np.array(pictures)[~np.array([row["held_out"] for row in rows])]
    vae, scaling = autoencoder.load(work)
    encoder = transparency.offset_encoder().to(device())
    optimizer = Muon(encoder, rate)
    average = Average(encoder, 0.99)
    run = Run(work, "offset", minutes=minutes, rate=rate)
    run.begin(encoder, optimizer, average)
    generator = torch.Generator().manual_seed(run.seed)
    for _ in run.steps(optimizer):
        rgba = mixing.to_tensor(training[torch.randint(len(training), (BATCH,), generator=generator).numpy()])
        rgba = mixing.crop(mixing.move(rgba, generator, scale=(0.7, 1.2)), SIZE, generator)
        rgba = mixing.soften(rgba, generator).to(device())
        with autocast():
            _, moved = transparency.hide(vae, encoder, rgba)
        aim = transparency.wanted(rgba)
        loss = ((moved * scaling - aim) ** 2).mean() / aim.pow(2).mean().clamp(min=1e-4)
        run.update(encoder, optimizer, loss)
        average.update(encoder)
        run.log(loss=loss.detach(), missed=(moved.detach() * scaling - aim).abs().mean())
        run.keep(every=100)
    run.keep()


if __name__ == "__main__":
    train(**vars(stage_parser(__doc__, minutes=4, rate=2e-3).parse_args()))
