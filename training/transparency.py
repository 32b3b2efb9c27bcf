"""Stage 4: the offset encoder and the transparent decoder, on the frozen autoencoder.

    latent = mean + deviation * offset          the picture on mid-grey, encoded; the offset hides its alpha
    [alpha, rgb] = decoder(VAE-decoded pixels in 0..1, latent)

The offset is held near a fixed step for places that are transparent and none for those that are not, so that
transparent latents stay near the ordinary ones that the base knows. Latents get a little noise, as a sampled latent is
never perfect; some soft alpha (glow, shadow, glass, smoke) is added, since the pictures have little of it.

    python -m training.transparency --work build/training --minutes 20
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from layerdiffuse_mcp.engine.transparency_networks import OffsetEncoder, TransparentDecoder
from training import autoencoder, data, mixing
from training.common import Average, Run, autocast
from training.optimizer import Muon
from training.padding import spread_colour

DECODER_WIDTHS = (16, 16, 32, 32, 40, 48, 48)
ENCODER_WIDTHS = (16, 32, 48, 64)
OFFSET_WEIGHT = 0.5
STEP = (0.25, -0.25, 0.25, -0.25)  # in scaled latents: how far a wholly transparent place is moved
OFFSET_SCALE = 60.0  # the posterior is narrow (0.4% of the latents' spread), so offsets are large; folded in by `load`
NOISE = 0.12  # the largest deviation of the noise, in scaled latents


def networks() -> torch.nn.ModuleDict:
    torch.manual_seed(4)
    encoder = OffsetEncoder(ENCODER_WIDTHS, OFFSET_SCALE)
    for layer in encoder.blocks:
        if isinstance(layer, torch.nn.Conv2d):
            # torch's default lets nine SiLU layers without norms die out, and the offset would never be found
            torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            layer.weight.data *= 1.3
    encoder.blocks[-1].weight.data *= 0.5
    return torch.nn.ModuleDict({"encoder": encoder, "decoder": TransparentDecoder(DECODER_WIDTHS)})


def hide(vae: AutoencoderKL, encoder: OffsetEncoder, rgba: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The unscaled transparent latents of cut-outs (B, 4, H, W), and how far each was moved from the VAE's own."""
    rgb, alpha = rgba[:, :3], rgba[:, 3:]
    with torch.no_grad():
        posterior = vae.encode(mixing.flattened(rgba) * 2 - 1).latent_dist
    offset = encoder(torch.cat([alpha, spread_colour(rgb, alpha)], 1))
    moved = posterior.std.float() * offset.float()
    return posterior.mean.float() + moved, moved


def wanted(rgba: torch.Tensor) -> torch.Tensor:
    """Where the offset is held: a small step wherever nothing shows, in proportion (B, 4, H/8, W/8), scaled latents.

    An opaque grey and an empty grey then differ in the latent, what shows keeps its own latent, and the base has but
    one thing to learn. Left alone, so small a pair of networks finds no use for the offset.
    """
    clear = 1 - F.avg_pool2d(rgba[:, 3:], 8)
    return clear * torch.tensor(STEP).view(1, 4, 1, 1)


def pixels(vae: AutoencoderKL, latent: torch.Tensor) -> torch.Tensor:
    """What the VAE decodes, 0..1."""
    return (vae.decode(latent).sample.float() / 2 + 0.5).clamp(0, 1)


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
    behind = torch.rand(rgba.shape[0], 3, 1, 1, generator=generator)
    clipped = alpha.clamp(0, 1)
    composite = seen[:, 1:] * clipped + behind * (1 - clipped)
    return {
        "alpha": wrong.abs().mean() + 2 * (wrong**2).mean(),
        "edges": 0.5 * edges,
        "soft": 0.5 * (wrong.abs() * soft).mean(),
        "colour": (colour.abs() * (0.05 + target)).mean() + 2 * (colour**2 * target).mean() + 0.5 * sharp.mean(),
        "composite": 0.5 * (composite - mixing.composite(rgba, behind)).abs().mean(),
    }


def train(work: Path, minutes: float, decoder_only: bool = False) -> None:
    pictures, rows = data.load(work)
    training = np.array(pictures)[~np.array([row["held_out"] for row in rows])]
    vae, scaling = autoencoder.load(work)
    both = networks()
    optimizer = Muon(both, 2e-3)
    average = Average(both, 0.995)
    run = Run(work, "transparency", minutes=minutes, rate=2e-3)
    if state := run.resume():
        both.load_state_dict(state["both"])
        if "optimizer" in state and not decoder_only:
            optimizer.load_state_dict(state["optimizer"])
        average.values, average.steps = state["average"], run.step
    if decoder_only:  # the latents stay as they are: a layer file trained on them stays valid
        averaged = {name: value for name, value in average.values.items() if name.startswith("encoder.")}
        both.load_state_dict(averaged, strict=False)
        both["encoder"].requires_grad_(False)
    generator = torch.Generator().manual_seed(run.step + 1000003 * run.team.rank)
    for step in run.steps(optimizer):
        late = run.used > 0.5 * minutes * 60
        size, count = (128, 3) if late or step % 4 == 0 else (64, 8)
        rgba = mixing.to_tensor(training[torch.randint(len(training), (count,), generator=generator).numpy()])
        if size < 128:
            rgba = mixing.crop(rgba, size, generator)
        elif torch.rand(1, generator=generator) < 0.5:
            rgba = mixing.move(rgba, generator, scale=(0.7, 1.2))
        if torch.rand(1, generator=generator) < 0.5:
            rgba = rgba.flip(3)
        rgba = mixing.soften(rgba, generator, share=0.15).contiguous()
        with autocast():
            latent, moved = hide(vae, both["encoder"], rgba)
            deviation = NOISE / scaling * torch.rand(count, 1, 1, 1, generator=generator)
            latent = latent + deviation * torch.randn(latent.shape, generator=generator)
            with torch.no_grad():
                pixel = pixels(vae, latent)
            seen = both["decoder"](pixel, latent)
        losses = loss_of(seen.float(), rgba, generator)
        losses["offset"] = OFFSET_WEIGHT * ((moved * scaling - wanted(rgba)) ** 2).mean()
        loss = sum(losses.values())
        run.update(both, optimizer, loss)
        average.update(both)
        mean_error = (seen.detach()[:, :1].clamp(0, 1) - rgba[:, 3:]).abs().mean() * 255
        run.log(
            total=loss.detach(),
            alpha255=mean_error,
            moved=(moved.detach() * scaling).pow(2).mean().sqrt(),
            **{name: value.detach() for name, value in losses.items()},
        )
        if run.step % 50 == 49:
            run.save(both=both.state_dict(), optimizer=optimizer.state_dict(), average=average.values)
    run.save(both=both.state_dict(), optimizer=optimizer.state_dict(), average=average.values)


def load(work: Path) -> tuple[OffsetEncoder, TransparentDecoder]:
    """The trained offset encoder and decoder (EMA weights), frozen."""
    both = networks()
    both.load_state_dict(torch.load(work / "transparency.pt", weights_only=True)["average"])
    both.requires_grad_(False).eval()
    encoder = both["encoder"]
    encoder.blocks[-1].weight *= encoder.output_scale
    encoder.blocks[-1].bias *= encoder.output_scale
    encoder.output_scale = 1.0
    return both["encoder"], both["decoder"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/training"))
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument(
        "--decoder-only", action="store_true", help="go on with the decoder, leave the encoder as it is"
    )
    arguments = parser.parse_args()
    train(arguments.work, arguments.minutes, arguments.decoder_only)
