"""Stage 5: the transparent decoder, and with it the offset encoder, on the frozen autoencoder.

In the first part of the time both learn, and the offset, loosely held to `transparency.wanted`, finds room for where
in its 8 x 8 pixels an edge runs; then it rests, and the decoder learns to read it. Latents get a little noise before
they are decoded, as a sampled latent is never perfect; some soft alpha (glow, shadow, glass, smoke) is added, since the
pictures have little of it. What the VAE makes of a batch is kept and shown several times, turned and mirrored, which is
what the eight views of the decoder do too: so most of the time goes into the two networks themselves.

    python -m training.decoder --work build/training --minutes 40
    python -m training.decoder --work build/training --minutes 10 --again      # once the VAE's decoder has learnt on
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from layerdiffuse_mcp.engine.transparency.networks import OffsetEncoder
from training import autoencoder, data, mixing, transparency
from training.common import Average, Run, autocast, device, stage_parser
from training.materials import glass, glowing, smoke
from training.optimizer import Muon
from training.pool import Pool, chance

BATCH = {128: 4, 64: 16}  # of each process: whole pictures, or windows where alpha changes most
WHOLE_FROM = 0.6  # of the time: from here on whole pictures only, a quarter of the batches before
WINDOWS = 6  # tried for the best one
NOISE = 0.04  # the largest deviation of the noise, in scaled latents
SMOKE_SHARE, MATERIAL_SHARE = 0.03, 0.12  # batches of smoke, and of smoke, glass and glowing things
SOFTENED = 0.15  # share of the other pictures that get soft alpha
HELD = {"edges": 0.05, "elsewhere": 2.0}  # the weight of the offset's squared distance to `wanted`
RESTS_FROM = 0.5  # of the time: from here on the offset encoder stays as it is


class Batch(NamedTuple):
    """Cut-outs (B, 4, H, W), what the offset encoder sees of them, and what the VAE makes of them: the noised means and
    the deviations of their posteriors, unscaled, and the pixels decoded with the offset as it was then.
    """

    rgba: torch.Tensor
    seen: torch.Tensor
    mean: torch.Tensor
    deviation: torch.Tensor
    pixel: torch.Tensor


def loss_of(seen: torch.Tensor, rgba: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """seen: (B, 4, H, W) alpha, r, g, b; rgba: the target. Alpha, its edges, colour where it shows, and the composite
    on any colour.
    """
    alpha, target = seen[:, :1], rgba[:, 3:]
    # beyond 0 and 1 nothing is wrong: what is decoded is clipped
    right = ((target > 0.998) & (alpha > 1)) | ((target < 0.002) & (alpha < 0))
    wrong = torch.where(right, 0.0, alpha - target)
    edges = (wrong[..., 1:] - wrong[..., :-1]).abs().mean() + (wrong[..., 1:, :] - wrong[..., :-1, :]).abs().mean()
    soft = ((target > 16 / 255) & (target < 239 / 255)).float()
    colour = seen[:, 1:] - rgba[:, :3]
    sharp = (colour[..., 1:] - colour[..., :-1]).abs() * target[..., 1:]
    behind = torch.rand(rgba.shape[0], 3, 1, 1, generator=generator).to(rgba)
    clipped = alpha.clamp(0, 1)
    composite = seen[:, 1:] * clipped + behind * (1 - clipped)
    return {
        "alpha": 2 * wrong.abs().mean(),
        "edges": 0.5 * edges,
        "soft": 0.5 * (wrong.abs() * soft).mean(),
        "colour": (colour.abs() * (0.05 + target)).mean() + 2 * (colour**2 * target).mean() + 0.5 * sharp.mean(),
        "composite": 0.5 * (composite - mixing.composite(rgba, behind)).abs().mean(),
    }


def held_loss(moved: torch.Tensor, rgba: torch.Tensor) -> torch.Tensor:
    """Holds the scaled offset to `wanted`: loosely where a latent pixel sees an edge or soft alpha, else firmly. Left
    free, it would carry colour too, and the pixels that the VAE decodes would lose theirs.
    """
    cover = F.avg_pool2d(rgba[:, 3:], 8)
    edges = (cover > 0.001) & (cover < 0.999)
    weight = torch.where(edges, HELD["edges"], HELD["elsewhere"])
    return (weight * (moved - transparency.wanted(rgba)) ** 2).mean()


class Source:
    """Makes batches of the training pictures."""

    def __init__(self, work: Path, encoder: OffsetEncoder, generator: torch.Generator) -> None:
        pictures, rows = data.load(work)
        self.pictures = np.array(pictures)[~np.array([row["held_out"] for row in rows])]
        self.vae, self.scaling = autoencoder.load(work)
        self.encoder, self.generator = encoder, generator

    @torch.no_grad()
    def batch(self, size: int) -> Batch:
        """Whole pictures, or windows of this size in them."""
        generator, count = self.generator, BATCH[size]
        chosen = torch.randint(len(self.pictures), (count,), generator=generator).numpy()
        rgba = mixing.to_tensor(self.pictures[chosen])
        if chance(generator) < 0.3:
            rgba = mixing.move(rgba, generator, scale=(0.7, 1.2))
        material = chance(generator)
        if material < SMOKE_SHARE:
            colour = torch.rand(3, generator=generator).tolist()
            rgba = smoke(count, (colour[0], colour[1], colour[2]), generator)
        elif material < MATERIAL_SHARE:
            rgba = (glass if chance(generator) < 0.6 else glowing)(rgba, generator)
        else:
            rgba = mixing.soften(rgba, generator, share=SOFTENED)
        if size < data.SIZE:
            rgba = torch.cat([self._window(one, size) for one in rgba.split(1)])
        rgba = rgba.to(device())
        with autocast():
            posterior = self.vae.encode(mixing.flattened(rgba) * 2 - 1).latent_dist
            seen, mean, deviation = transparency.offset_input(rgba), posterior.mean.float(), posterior.std.float()
            noise = NOISE / self.scaling * torch.rand(count, 1, 1, 1, generator=generator)
            mean = mean + (noise * torch.randn(mean.shape, generator=generator)).to(mean)
            pixel = transparency.pixels(self.vae, mean + deviation * self.encoder(seen).float())
        return Batch(rgba.half(), seen.half(), mean, deviation, pixel.half())

    def _window(self, rgba: torch.Tensor, size: int) -> torch.Tensor:
        """Of some random squares the one where alpha changes most."""
        tried = [mixing.crop(rgba, size, self.generator) for _ in range(WINDOWS)]
        return max(tried, key=lambda one: float(one[:, 3].diff(dim=2).abs().sum() + one[:, 3].diff(dim=1).abs().sum()))


def seen_from_any_side(*parts: torch.Tensor, generator: torch.Generator) -> list[torch.Tensor]:
    """The parts turned and mirrored, all in one of the eight views."""
    turns, mirrored = int(chance(generator) * 4), chance(generator) < 0.5
    views = [part.rot90(turns, (2, 3)) for part in parts]
    return [(view.flip(3) if mirrored else view).contiguous() for view in views]


def train(work: Path, minutes: float, rate: float, again: bool) -> None:
    both = transparency.pair(transparency.load_offset(work)).to(device())
    if again:
        both.load_state_dict(torch.load(work / "decoder.pt", map_location=device(), weights_only=True)["average"])
    encoder, decoder = both["encoder"], both["decoder"]
    optimizer = Muon(both, rate)
    average = Average(both, 0.998)
    run = Run(work, "decoder_again" if again else "decoder", minutes=minutes, rate=rate)
    run.begin(both, optimizer, average)
    generator = torch.Generator().manual_seed(run.seed)
    source = Source(work, encoder, generator)
    pool = Pool(source.batch, generator)
    for step in run.steps(optimizer):
        done = run.agreed / (minutes * 60)
        if (again or done > RESTS_FROM) and encoder.training:
            encoder.load_state_dict({name: average.values[f"encoder.{name}"] for name in encoder.state_dict()})
            encoder.requires_grad_(False).eval()
            pool.clear()
        drawn = pool.draw(128 if step % 4 == 0 or done > WHOLE_FROM else 64)
        batch = Batch(*(part.float() for part in drawn))
        with autocast():
            moved = batch.deviation * encoder(batch.seen).float()
            rgba, pixel, latent = seen_from_any_side(batch.rgba, batch.pixel, batch.mean + moved, generator=generator)
            seen = decoder(pixel, latent).float()
        losses = loss_of(seen, rgba, generator)
        losses["held"] = held_loss(moved * source.scaling, batch.rgba)
        loss = sum(losses.values())
        run.update(both, optimizer, loss)
        average.update(both)
        wrong = (seen.detach()[:, :1].clamp(0, 1) - rgba[:, 3:]).abs().mean() * 255
        run.log(total=loss.detach(), alpha255=wrong, **{name: value.detach() for name, value in losses.items()})
        run.keep(every=100)
    run.keep()


if __name__ == "__main__":
    parser = stage_parser(__doc__, minutes=40, rate=2e-3)
    parser.add_argument("--again", action="store_true", help="go on from the first run's end, the offset at rest")
    train(**vars(parser.parse_args()))
