"""Stage 1: the autoencoder, trained first and alone, on ordinary pictures.

Trained together with the transparent decoder, information would flee into the offset. Colours are learnt by shuffling
the channels of three pictures of four and by an opponent-colour loss on 4x4 averages: without them hues of this small
a network drift.

    python -m training.autoencoder --work build/training --minutes 22
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from training import data, mixing
from training.backgrounds import bank
from training.common import Run, autocast, device, psnr, stage_parser
from training.optimizer import Muon

CONFIG = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (16, 32, 64, 64),
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 2,
    "sample_size": 128,
}
DECODER = "vae_decoder"  # the run in which the decoder learns on
KL_WEIGHT, KL_START = 2e-5, 600  # on the mean over latent elements; from this step on


def ordinary(
    pictures: np.ndarray, backgrounds: np.ndarray, indices: np.ndarray, size: int, generator: torch.Generator
) -> torch.Tensor:
    """A batch of ordinary pictures in 0..1: on backgrounds, on grey, colour-spread, or backgrounds alone, with
    shuffled channels.

    Pictures smaller than the originals are crops, or one time of three the whole picture at half its size.
    """
    chance = torch.rand(4, generator=generator)
    behind = torch.randint(len(backgrounds), (len(indices),), generator=generator).numpy()
    if size < data.SIZE and chance[0] < 0.67:
        y, x = torch.randint(data.SIZE - size + 1, (2,), generator=generator).tolist()
        window = np.s_[:, y : y + size, x : x + size]
        rgba, back = mixing.to_tensor(pictures[indices][window]), mixing.to_tensor(backgrounds[behind][window])
    else:
        rgba, back = mixing.to_tensor(pictures[indices]), mixing.to_tensor(backgrounds[behind])
    kind = torch.rand(len(indices), 1, 1, 1, generator=generator)
    image = torch.where(kind < 0.42, mixing.composite(rgba, back), mixing.flattened(rgba))
    image = torch.where(kind > 0.82, rgba[:, :3], image)
    image = torch.where(kind > 0.96, back, image)
    if image.shape[-1] > size:
        image = F.avg_pool2d(image, image.shape[-1] // size)
    if chance[1] < 0.75:
        image = image[:, torch.randperm(3, generator=generator)]
    if chance[2] < 0.5:
        image = image.flip(3)
    if chance[3] < 0.3:
        image = image.transpose(2, 3)
    return image.contiguous()


def loss_of(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Multi-scale L1, gradients, and opponent colours on 4x4 averages."""
    difference = output - target
    loss = difference.abs().mean()
    for factor in (2, 4):
        loss = loss + F.avg_pool2d(difference, factor).abs().mean()
    across = (difference[..., 1:] - difference[..., :-1]).abs().mean() + (
        difference[..., 1:, :] - difference[..., :-1, :]
    ).abs().mean()
    coarse = F.avg_pool2d(difference, 4)
    red, green, blue = coarse.unbind(1)
    opponent = (red - green).abs().mean() + ((red + green) / 2 - blue).abs().mean()
    return loss + 0.5 * across + opponent + 2 * (difference**2).mean()


@torch.no_grad()
def held_out_psnr(vae: AutoencoderKL, pictures: np.ndarray) -> float:
    """dB on held-out pictures on grey, at their full size."""
    vae.eval()
    errors = []
    for start in range(0, len(pictures), 16):
        image = mixing.flattened(mixing.to_tensor(pictures[start : start + 16])).to(device())
        with autocast():
            output = vae.decode(vae.encode(image * 2 - 1).latent_dist.mean).sample.float() / 2 + 0.5
        errors.append(((output.clamp(0, 1) - image) ** 2).mean((1, 2, 3)))
    vae.train()
    return float(psnr(torch.cat(errors)).mean())


def network() -> AutoencoderKL:
    torch.manual_seed(0)
    vae = AutoencoderKL(**CONFIG)
    with torch.no_grad():
        vae.quant_conv.bias[
            4:
        ] = -6.0  # a narrow posterior from the start: wide noise would drown the picture, and the latent stay empty
    return vae


def train(work: Path, minutes: float, rate: float) -> None:
    pictures, rows = data.load(work)
    pictures = np.array(pictures)
    held = np.array([row["held_out"] for row in rows])
    training, testing = pictures[~held], pictures[held]
    backgrounds, _ = bank(800, seed=1)
    vae = network().to(device())
    optimizer = Muon(vae, rate)
    run = Run(work, "autoencoder", minutes=minutes, rate=rate)
    if state := run.resume():
        vae.load_state_dict(state["vae"])
        if "optimizer" in state:
            optimizer.load_state_dict(state["optimizer"])
    generator = torch.Generator().manual_seed(run.step + 1000003 * run.team.rank)

    def both(image: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        moments = vae.quant_conv(vae.encoder(image))
        mean, spread = moments.chunk(2, 1)
        spread = spread.clamp(-20, 10)
        output = vae.decoder(vae.post_quant_conv(mean + torch.exp(spread / 2) * noise))
        return output, mean, spread

    for step in run.steps(optimizer):
        late = run.agreed > 0.7 * minutes * 60
        size, count = (128, 2) if step % 4 == 0 and late else (64, 6)
        indices = torch.randint(len(training), (count,), generator=generator).numpy()
        image = ordinary(training, backgrounds, indices, size, generator).to(device())
        noise = torch.randn(count, 4, size // 8, size // 8, generator=generator).to(device())
        with autocast():
            output, mean, spread = both(image * 2 - 1, noise)
        output, mean, spread = output.float(), mean.float(), spread.float()
        divergence = 0.5 * (mean**2 + spread.exp() - 1 - spread).mean()
        loss = loss_of(output / 2 + 0.5, image) + KL_WEIGHT * min(1.0, max(0.0, step / KL_START - 1)) * divergence
        run.update(vae, optimizer, loss)
        error = ((output.detach() / 2 + 0.5 - image) ** 2).mean((1, 2, 3))
        run.log(
            loss=loss.detach(),
            db=psnr(error).mean(),
            std=(spread.detach() / 2).exp().mean(),
            latent=mean.detach().std(),
        )
        if run.step % 500 == 499 and run.team.rank == 0:
            print("held out dB", round(held_out_psnr(vae, testing[::4]), 2), flush=True)
            run.save(vae=vae.state_dict(), optimizer=optimizer.state_dict())
    if run.team.rank:
        return
    latents = torch.cat(
        [
            vae.encode(
                ordinary(training, backgrounds, np.arange(start, start + 16), 128, generator).to(device()) * 2 - 1
            ).latent_dist.mean.detach()
            for start in range(0, 512, 16)
        ]
    )
    scaling = round(1 / float(latents.std()), 4)
    print(
        "held out dB",
        held_out_psnr(vae, testing),
        "scaling factor",
        scaling,
        "latent means",
        latents.mean((0, 2, 3)).tolist(),
    )
    run.save(vae=vae.state_dict(), optimizer=optimizer.state_dict(), scaling=scaling)


def load(work: Path) -> tuple[AutoencoderKL, float]:
    """The trained autoencoder, frozen, and its scaling factor; its decoder as `vae_decoder.py` left it, if that ran."""
    state = torch.load(work / "autoencoder.pt", map_location="cpu", weights_only=True)
    vae = AutoencoderKL(**CONFIG)
    vae.load_state_dict(state["vae"])
    if (work / f"{DECODER}.pt").exists():
        finished = torch.load(work / f"{DECODER}.pt", map_location="cpu", weights_only=True)
        vae.load_state_dict(finished["average"], strict=False)
    return vae.requires_grad_(False).eval().to(device()), state.get("scaling", 1.0)


if __name__ == "__main__":
    train(**vars(stage_parser(__doc__, minutes=22, rate=2e-3).parse_args()))
