"""Stage 5: `layer_sd15_transparent_attn`, which moves the frozen base into the transparent latent space.

It learns on transparent latents, (mean + deviation * offset) * scaling factor, with captions that name the subject
only; whatever background the base would have drawn becomes "no background". The file's modules are the engine's own
(attention sharing, one frame). What its outputs add begins at zero: `up` of the low-rank changes and `temporal_o`,
which are trained from there.

    python -m training.layer --work build/training --minutes 10
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel

from layerdiffuse_mcp.engine.sampling.denoiser import Conditioning
from layerdiffuse_mcp.engine.sharing import SharedNetwork, SharingModel
from training import autoencoder, transparency, unet
from training.captions import Tokens, caption
from training.common import Average, Run, autocast
from training.latents import Drawn
from training.optimizer import Muon
from training.vocabulary import LOOKS, Look, cutouts, vocabulary

RANK, BATCH = 8, 32
VARIANTS = (16, 4, 4, 4)  # of each look


def network(base: UNet2DConditionModel) -> SharingModel:
    """A new layer model that changes nothing yet."""
    torch.manual_seed(5)
    model = SharingModel(base, frames=1, rank=RANK, control=False)
    for name, value in model.named_parameters():
        if ".up." in name or "temporal_o" in name:
            torch.nn.init.zeros_(value)
    return model


def initial(base: UNet2DConditionModel) -> dict[str, torch.Tensor]:
    return network(base).state_dict()


@torch.no_grad()
def transparent_latents(work: Path) -> dict[str, torch.Tensor]:
    """Scaled transparent latents of the vocabulary (N, 4, 16, 16), and their subjects and looks (N,), made once."""
    file = work / "transparent_latents.pt"
    if not file.exists():
        vae, scaling = autoencoder.load(work)
        encoder = transparency.load_encoder(work)
        generator = torch.Generator().manual_seed(6)
        latents, facts = [], []
        for number, subject in enumerate(vocabulary(work)):
            for place, look in enumerate(LOOKS):
                if subject.has(look):
                    rgba = cutouts(subject, look, VARIANTS[place], generator)
                    with autocast():
                        latents.append((transparency.hide(vae, encoder, rgba)[0].float() * scaling).half())
                    facts += [(number, place)] * len(rgba)
        subject, look = torch.tensor(facts).unbind(1)
        torch.save({"latents": torch.cat(latents), "subject": subject, "look": look}, file)
    return torch.load(file, weights_only=True)


def said(words: list[str], look: Look, rng: np.random.Generator) -> str:
    """A caption without background, or none at all."""
    if rng.random() < unet.EMPTY_SHARE:
        return ""
    return caption(words, rng, style=look.style, material=look.material)


def train(work: Path, minutes: float, rate: float) -> None:
    encoded = transparent_latents(work)
    draw = Drawn(encoded["subject"], encoded["look"])
    words = [subject.words for subject in vocabulary(work)]
    base, text = unet.load(work)
    model = network(base)
    optimizer = Muon(model, rate)
    average = Average(model, 0.995)
    run = Run(work, "layer", minutes=minutes, rate=rate, warmup=20)
    if state := run.resume():
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average.values, average.steps = state["average"], run.step
    rng = np.random.default_rng(run.step + 1000003 * run.team.rank)
    generator = torch.Generator().manual_seed(run.step + 1000003 * run.team.rank)
    tokens = Tokens()
    shared = SharedNetwork(base, model, trainable=True)
    for _ in run.steps(optimizer):
        chosen = list(draw(rng, BATCH))
        texts = [said(words[number], LOOKS[place], rng) for _, number, place in chosen]
        latents = encoded["latents"][[row for row, *_ in chosen]].float()
        noisy, steps, noise, weight = unet.noised(latents, generator)
        with autocast():
            with torch.no_grad():
                context = text(tokens(texts)).last_hidden_state
            predicted = shared.network(noisy, steps, Conditioning(context)).float()
        error = ((predicted - noise) ** 2).mean((1, 2, 3))
        loss = (error * weight).mean()
        run.update(model, optimizer, loss)
        average.update(model)
        run.log(loss=loss.detach(), error=error.detach().mean())
        if run.step % 50 == 49:
            run.save(model=model.state_dict(), optimizer=optimizer.state_dict(), average=average.values)
    run.save(model=model.state_dict(), optimizer=optimizer.state_dict(), average=average.values)


def load(work: Path) -> dict[str, torch.Tensor]:
    """The trained layer file's tensors (EMA weights)."""
    return torch.load(work / "layer.pt", weights_only=True)["average"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/training"))
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--rate", type=float, default=1e-3)
    arguments = parser.parse_args()
    train(arguments.work, arguments.minutes, arguments.rate)
