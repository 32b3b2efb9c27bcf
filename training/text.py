"""A head start for the text encoder: it first learns to tell the captions' subjects, looks and backgrounds apart.

Through the UNet alone a text encoder learns late and slowly, and until it does the UNet has nothing to listen to. A
minute with three throw-away classifiers on the end tokens gives every caption an embedding of its own.
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
from training.vocabulary import LOOKS

SHOWN = 24  # tokens looked at: the text is causal, so what comes later changes nothing before
BATCH = 64


def warm_up(text: CLIPTextModel, words: list[list[str]], steps: int = 300, rate: float = 2e-3) -> None:
    """Trains `text` in place to name subject, look and background at every position after the caption's end."""
    kinds = [*KINDS, None]
    counts = (len(words), len(LOOKS), len(kinds))
    heads = torch.nn.ModuleList([torch.nn.Linear(text.config.hidden_size, count) for count in counts])
    both = torch.nn.ModuleDict({"text": text, "heads": heads})
    optimizer = Muon(both, rate, plain=("embedding", "heads"))
    rng, tokens = np.random.default_rng(8), Tokens()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * group["scale"] * (1 - step / steps)
        chosen = np.stack([rng.integers(count, size=BATCH) for count in counts])
        chosen[1] *= rng.random(BATCH) < 0.5
        chosen[2] = np.where(rng.random(BATCH) < 0.5, len(kinds) - 1, chosen[2])
        captions = [
            caption(words[s], rng, style=LOOKS[k].style, material=LOOKS[k].material, background=kinds[b])
            for s, k, b in chosen.T
        ]
        ids = tokens(captions)[:, :SHOWN]
        with autocast():
            states = text(ids).last_hidden_state
        ends = (ids == tokens.tokenizer.end).int().argmax(1).numpy()
        place = torch.from_numpy(rng.integers(ends, SHOWN))
        state = states[torch.arange(BATCH), place].float()
        aims = torch.from_numpy(chosen)
        guessed = [head(state) for head in heads]
        loss = sum(F.cross_entropy(logits, aim) for logits, aim in zip(guessed, aims, strict=True))
        both.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimizer.step()
        if step % 20 == 19:
            right = [float((logits.argmax(1) == aim).float().mean()) for logits, aim in zip(guessed, aims, strict=True)]
            print("text warm-up", step + 1, "loss", round(float(loss.detach()), 3), "right", right, flush=True)
