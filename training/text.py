"""A head start for the text encoder: it first learns to tell the captions' subjects and backgrounds apart.

Through the UNet alone a text encoder learns late and slowly, and until it does the UNet has nothing to listen to. A
minute with two throw-away classifiers on the end tokens gives every caption an embedding of its own.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from transformers import CLIPTextModel

from training.backgrounds import KINDS
from training.captions import Tokens, caption
from training.common import autocast
from training.optimizer import Muon

SHOWN = 24  # tokens looked at: the text is causal, so what comes later changes nothing before
BATCH = 64


def warm_up(text: CLIPTextModel, words: list[list[str]], steps: int = 200, rate: float = 2e-3) -> None:
    """Trains `text` in place to name subject and background at every position after the caption's end."""
    kinds = [*KINDS, None]
    heads = torch.nn.ModuleList(
        [torch.nn.Linear(text.config.hidden_size, len(words)), torch.nn.Linear(text.config.hidden_size, len(kinds))]
    )
    both = torch.nn.ModuleDict({"text": text, "heads": heads})
    optimizer = Muon(both, rate, plain=("embedding", "heads"))
    rng, tokens = np.random.default_rng(8), Tokens()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * group["scale"] * (1 - step / steps)
        subject = rng.integers(len(words), size=BATCH)
        behind = np.where(rng.random(BATCH) < 0.5, len(kinds) - 1, rng.integers(len(kinds), size=BATCH))
        ids = tokens([caption(words[s], rng, kinds[b]) for s, b in zip(subject, behind, strict=True)])[:, :SHOWN]
        with autocast():
            states = text(ids).last_hidden_state
        ends = (ids == tokens.tokenizer.end).int().argmax(1).numpy()
        place = torch.from_numpy(rng.integers(ends, SHOWN))
        state = states[torch.arange(BATCH), place].float()
        guessed = [head(state) for head in heads]
        loss = F.cross_entropy(guessed[0], torch.from_numpy(subject)) + F.cross_entropy(
            guessed[1], torch.from_numpy(behind)
        )
        both.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimizer.step()
        if step % 20 == 19:
            right = (guessed[0].argmax(1) == torch.from_numpy(subject)).float().mean()
            print("text warm-up", step + 1, "loss", round(float(loss.detach()), 3), "right", float(right), flush=True)
