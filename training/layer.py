"""Stage 7: the layer files, which move the frozen base into the transparent latent space and join layers of a scene.

    layer_sd15_transparent_attn   learns on transparent latents, (mean + deviation * offset) * scaling factor, with
                                  captions that name the subject only; "no background" takes the background's place
    layer_sd15_joint              foreground, background and blended picture of a scene drawn together
    layer_sd15_fg2bg, _bg2fg      the other two of them, for one that is given

The files' modules are the engine's own (attention sharing). What they add begins at zero: `up` of the low-rank
changes, `temporal_o` and the last of `control_convs`, which are trained from there; a foreground's own low-rank
changes begin as those of the transparent file.

    python -m training.layer --method layer_sd15_joint --work build/training --minutes 10
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from diffusers import UNet2DConditionModel

from layerdiffuse_mcp.engine.layers.attention_sharing import shared_attention
from layerdiffuse_mcp.engine.layers.attention_sharing_file import SharingModel
from layerdiffuse_mcp.engine.models.networks import UNetNetwork
from layerdiffuse_mcp.engine.types import Conditioning
from layerdiffuse_mcp.families.registry import METHODS
from training import autoencoder, transparency, unet
from training.backgrounds import KINDS
from training.captions import Tokens
from training.common import Average, Run, autocast, device, once, stage_parser
from training.latents import TINTS, Drawn, shown
from training.optimizer import Muon
from training.text import contexts
from training.triples import ROLES, triples
from training.vocabulary import LOOKS, cutouts, vocabulary

TRANSPARENT = "layer_sd15_transparent_attn"
RANK = 8
ROWS = 32  # latents of a batch of each process, about
CONTROL_WIDTH = 64
VARIANTS = (10, 3, 3, 3, *[1] * len(TINTS))  # of each look
OWN_PROMPTS = 0.4  # share of scenes whose layers have prompts of their own


class Batch(NamedTuple):
    """latents (images x frames, 4, h, w), the frame running fastest; a text for each; what is given, or None: pictures
    for the control encoder (images, 3, H, W), or latents that go behind the noisy ones (images, 4 or 8, h, w).
    """

    latents: torch.Tensor
    texts: list[str]
    control: torch.Tensor | None = None
    behind: torch.Tensor | None = None


def network(base: UNet2DConditionModel, method: str, rank: int, control_width: int) -> SharingModel:
    """A new layer model that changes nothing yet."""
    torch.manual_seed(5)
    row = METHODS[method]
    model = SharingModel(base, row.frames, rank, bool(row.inputs), control_width)
    for name, value in model.named_parameters():
        if ".up." in name or "temporal_o" in name or ("control_convs" in name and ".2." in name):
            torch.nn.init.zeros_(value)
    return model


def start_from_transparent(model: SharingModel, tensors: dict[str, torch.Tensor]) -> None:
    """Takes over the low-rank changes of the transparent file for the first frame."""
    state = {name: value for name, value in tensors.items() if "_lora.0." in name}
    model.load_state_dict(state, strict=False)


def transparent_latents(work: Path) -> dict[str, torch.Tensor]:
    """Scaled transparent latents of the vocabulary (N, 4, 16, 16), and their subjects and looks (N,), made once."""
    return once(work / "transparent_latents.pt", lambda: _transparent_latents(work))


@torch.no_grad()
def _transparent_latents(work: Path) -> dict[str, torch.Tensor]:
    vae, scaling = autoencoder.load(work)
    encoder, _ = transparency.load_pair(work)
    rng, generator = np.random.default_rng(6), torch.Generator().manual_seed(6)
    latents, facts = [], []
    for number, subject in enumerate(vocabulary(work)):
        for place in shown(subject, rng):
            rgba = cutouts(subject, LOOKS[place], VARIANTS[place], generator)
            with autocast():
                latent, _ = transparency.hide(vae, encoder, rgba.to(device()))
            latents.append((latent.float() * scaling).half().cpu())
            facts += [(number, place)] * len(rgba)
    subject, look = torch.tensor(facts).unbind(1)
    return {"latents": torch.cat(latents), "subject": subject, "look": look}


def single(work: Path) -> Callable[[np.random.Generator], Batch]:
    """Draws batches for the transparent file."""
    encoded = transparent_latents(work)
    draw = Drawn(encoded["subject"], encoded["look"])
    subjects = vocabulary(work)

    def batch(rng: np.random.Generator) -> Batch:
        chosen = list(draw(rng, ROWS))
        texts = [subjects[number].caption(rng, LOOKS[place]) for _, number, place in chosen]
        texts = ["" if rng.random() < unet.EMPTY_SHARE else text for text in texts]
        return Batch(encoded["latents"][[row for row, *_ in chosen]].float(), texts)

    return batch


def scenes(work: Path, method: str) -> Callable[[np.random.Generator], Batch]:
    """Draws batches for a file of several frames: all layers under one prompt, or each under its own before it."""
    row, made = METHODS[method], triples(work)
    subjects, kinds = vocabulary(work), list(KINDS)
    frames = [ROLES.index(role) for role in row.outputs]

    def texts(number: int, kind: int, rng: np.random.Generator) -> list[str]:
        whole = subjects[number].caption(rng, background=kinds[kind])
        if rng.random() < unet.EMPTY_SHARE:
            return [""] * len(frames)
        if rng.random() >= OWN_PROMPTS:
            return [whole] * len(frames)
        own = {"foreground": subjects[number].caption(rng), "background": kinds[kind], "blended": ""}
        return [", ".join(part for part in (own[role], whole) if part) for role in row.outputs]

    def batch(rng: np.random.Generator) -> Batch:
        chosen = rng.integers(len(made["subject"]), size=ROWS // len(frames))
        said = [text for i in chosen for text in texts(int(made["subject"][i]), int(made["kind"][i]), rng)]
        control = made["given"][chosen, ROLES.index(row.inputs[0])].float() / 255 if row.inputs else None
        return Batch(made["latents"][chosen][:, frames].flatten(0, 1).float(), said, control)

    return batch


def learn(
    run: Run,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Average,
    draw: Callable[[np.random.Generator], Batch],
    predict: Callable[[torch.Tensor, torch.Tensor, Batch], torch.Tensor],
    roles: Sequence[str],
) -> None:
    """Trains `model` until the run's time is used up. predict: noisy latents, steps and their batch to the noise."""
    run.begin(model, optimizer, average)
    rng = np.random.default_rng(run.seed)
    generator = torch.Generator().manual_seed(run.seed)
    for _ in run.steps(optimizer):
        batch = draw(rng)
        noisy, steps, noise, weight = unet.noised(batch.latents, generator, together=len(roles))
        with autocast():
            predicted = predict(noisy, steps, batch).float()
        error = ((predicted - noise) ** 2).mean((1, 2, 3))
        loss = (error * weight).mean()
        run.update(model, optimizer, loss)
        average.update(model)
        run.log(loss=loss.detach(), **dict(zip(roles, error.detach().view(-1, len(roles)).mean(0), strict=True)))
        run.keep(every=50)
    run.keep()


def through(
    base: UNet2DConditionModel, model: SharingModel, embed: Callable[[list[str]], torch.Tensor]
) -> Callable[[torch.Tensor, torch.Tensor, Batch], torch.Tensor]:
    """The frozen base with `model` on it, as `learn` wants it. embed: texts to contexts (B, T, C)."""

    def predict(noisy: torch.Tensor, steps: torch.Tensor, batch: Batch) -> torch.Tensor:
        control = None if batch.control is None else batch.control.to(device())
        with torch.no_grad():
            context = embed(batch.texts)
        with shared_attention(UNetNetwork(base), model, control, trainable=True) as shared:
            return shared(noisy, steps, Conditioning(context))

    return predict


def train(work: Path, method: str, minutes: float, rate: float, steps: int | None) -> None:
    draw = single(work) if method == TRANSPARENT else scenes(work, method)
    base, text = unet.load(work)
    model = network(base, method, RANK, CONTROL_WIDTH)
    if METHODS[method].outputs[0] == "foreground" and method != TRANSPARENT:
        start_from_transparent(model, load(work, TRANSPARENT))
    model.to(device())
    tokens = Tokens()

    def embed(texts: list[str]) -> torch.Tensor:
        return contexts(text, tokens(texts).to(device()))

    run = Run(work, method, minutes=minutes, rate=rate, warmup=20, steps=steps)
    predict = through(base, model, embed)
    learn(run, model, Muon(model, rate), Average(model, 0.995), draw, predict, METHODS[method].outputs)


def load(work: Path, method: str) -> dict[str, torch.Tensor]:
    """The trained layer file's tensors (EMA weights)."""
    return torch.load(work / f"{method}.pt", map_location="cpu", weights_only=True)["average"]


if __name__ == "__main__":
    parser = stage_parser(__doc__, minutes=10, rate=1e-3)
    parser.add_argument("--steps", type=int, help="train until so many are done, however long it takes")
    parser.add_argument("--method", default=TRANSPARENT, choices=[m for m in METHODS if METHODS[m].family == "sd15"])
    train(**vars(parser.parse_args()))
