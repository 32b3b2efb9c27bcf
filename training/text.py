"""A head start for the text encoder: it first learns to tell the captions' subjects, looks and backgrounds apart.

Through the UNet alone a text encoder learns late and slowly, and until it does the UNet has nothing to listen to. A
minute with three throw-away classifiers on the end tokens gives every caption an embedding of its own.

A UNet that has learnt with an encoder goes on with it when the vocabulary grows: then the encoder learns the new words,
while what it says of the known ones is held where it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from layerdiffuse_mcp.engine.text.clip import TextConfig, TextEncoder
from training.backgrounds import KINDS
from training.captions import LENGTH, ROWS, Tokens
from training.common import autocast
from training.optimizer import Muon
from training.vocabulary import LOOKS, Subject

WIDTH = 128
CONFIG = TextConfig(
    vocab_size=ROWS,
    hidden_size=WIDTH,
    intermediate_size=4 * WIDTH,
    num_hidden_layers=3,
    num_attention_heads=4,
    max_position_embeddings=LENGTH,
    projection_dim=WIDTH,
)
SHOWN = 24  # tokens looked at: the text is causal, so what comes later changes nothing before
BATCH = 64
HOLD, HEADS_ALONE = 20.0, 0.25  # weight of what is held; share of the steps in which the classifiers learn alone


def text_encoder() -> TextEncoder:
    """A new one, small where it begins: from the engine's wide embeddings it would have to find its way back first."""
    text = TextEncoder(CONFIG)
    for name, value in text.named_parameters():
        if value.ndim > 1:
            torch.nn.init.normal_(value, std=WIDTH**-0.5 if "encoder" in name else 0.02)
        elif name.endswith("bias"):
            torch.nn.init.zeros_(value)
    return text


def contexts(text: TextEncoder, ids: torch.Tensor) -> torch.Tensor:
    """What the UNet attends to: (B, T) token ids -> (B, T, WIDTH)."""
    return text.final_layer_norm(text(ids)[-1])


class Known(NamedTuple):
    """What an encoder has learnt already: numbers of subjects and of looks."""

    subjects: set[int]
    looks: set[int]


def warm_up(
    text: TextEncoder,
    subjects: Sequence[Subject],
    steps: int = 300,
    rate: float = 2e-3,
    known: Known | None = None,
) -> None:
    """Trains `text` in place to name subject, look and background at every position after the caption's end; for what
    is `known`, its states stay near what they were.
    """
    kinds = [*KINDS, None]
    counts = (len(subjects), len(LOOKS), len(kinds))
    heads = torch.nn.ModuleList([torch.nn.Linear(WIDTH, count) for count in counts])
    both = torch.nn.ModuleDict({"text": text, "heads": heads})
    before = deepcopy(text) if known else None
    optimizer = Muon(both, rate, plain=("embedding", "heads"))
    rng, tokens = np.random.default_rng(8), Tokens()
    new = [number for number in range(len(subjects)) if known and number not in known.subjects]
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * group["scale"] * (1 - step / steps)
        chosen = np.stack([rng.integers(count, size=BATCH) for count in counts])
        chosen[1] *= rng.random(BATCH) < 0.5
        chosen[2] = np.where(rng.random(BATCH) < 0.5, len(kinds) - 1, chosen[2])
        if new:  # a quarter of the captions: they are few
            chosen[0] = np.where(rng.random(BATCH) < 0.25, rng.choice(new, BATCH), chosen[0])
        chosen[1] = [k if subjects[s].called(LOOKS[k]) else 0 for s, k in chosen[:2].T]
        captions = [subjects[s].caption(rng, LOOKS[k], kinds[b]) for s, k, b in chosen.T]
        ids = tokens(captions)[:, :SHOWN]
        with autocast():
            states = contexts(text, ids).float()
        ends = (ids == tokens.tokenizer.end).int().argmax(1).numpy()
        place = torch.from_numpy(rng.integers(ends, SHOWN))
        state = states[torch.arange(BATCH), place]
        if known and step < HEADS_ALONE * steps:
            state = state.detach()
        aims = torch.from_numpy(chosen)
        guessed = [head(state) for head in heads]
        loss = sum(F.cross_entropy(logits, aim) for logits, aim in zip(guessed, aims, strict=True))
        if known and before:
            held = torch.tensor([s in known.subjects and k in known.looks for s, k in chosen[:2].T])
            with torch.no_grad(), autocast():
                wanted = contexts(before, ids).float()
            moved = (states[held] - wanted[held]).square().mean()
            loss = loss + HOLD * moved
        both.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimizer.step()
        if step % 20 == 19:
            right = [float((logits.argmax(1) == aim).float().mean()) for logits, aim in zip(guessed, aims, strict=True)]
            shown = f"loss {float(loss.detach()):.3f}, right {right}" + (f", moved {moved:.5f}" if known else "")
            print("text warm-up", step + 1, shown, flush=True)
