"""What a prompt's marks mean, as A1111 and Forge read them; torch-free.

    parse_emphasis("a (red:1.3) [dull] cup")
    # [Span("a ", 1.0), Span("red", 1.3), Span(" ", 1.0), Span("dull", 0.909), Span(" cup", 1.0)]

    (text)  x 1.1      (text:1.3)  x 1.3      [text]  / 1.1      nested marks multiply
    \\( \\) \\[ \\] \\\\  the character itself; any other backslash is dropped
    BREAK              begins a new chunk (a mark only outside of brackets, as in the reference)
    <lora:name:0.8>    names a LoRA file; `extract_loras` takes these out before anything else is read

A mark that is left open counts to the end of the prompt; one that was never opened is plain text. Nothing here knows
of tokens: see `engine/chunks.py`.
"""

import math
import re
from itertools import groupby
from typing import NamedTuple

from layerdiffuse_mcp.errors import InvalidRequest

__all__ = ["BREAK", "LoraTag", "Span", "extract_loras", "parse_emphasis"]

ROUND = 1.1
SQUARE = 1 / 1.1
LIMIT = 1e6
"""No multiplier is larger: what goes beyond, a typing error or brackets by the thousand, must not end in infinity."""

_MARK = re.compile(
    r"""
      \\(?P<escaped>[()\[\]\\]?)
    | (?P<open>[(\[])
    | :\s*(?P<weight>[+-]?(?:\d+(?:\.\d*)?|\.\d+))\s*\)
    | (?P<close>[)\]])
    | (?P<text>[^\\()\[\]:]+|:)
    """,
    re.VERBOSE,
)
_BREAK = re.compile(r"\bBREAK\b")
_LORA = re.compile(r"<lora:([^<>]+)>")


class Span(NamedTuple):
    """A piece of a prompt and what its embeddings are multiplied by."""

    text: str
    weight: float


BREAK = Span("BREAK", -1.0)
"""The span that stands for a new chunk; the reference marks it with this otherwise useless weight."""


class LoraTag(NamedTuple):
    """A LoRA named in a prompt: its name, its strength on the denoising network and on the text encoder."""

    name: str
    strength: float
    text_strength: float


class _Scale(NamedTuple):
    """A closed mark: multiply the pieces from `start` up to `stop`."""

    start: int
    stop: int
    factor: float


def parse_emphasis(prompt: str) -> list[Span]:
    """Split a prompt into spans of one multiplier each; neighbours of equal multiplier are one span.

    Any text is accepted and something always comes back: `[Span("", 1.0)]` for nothing. The result equals that of
    `parse_prompt_attention` (A1111, Forge), where that has one: it fails on numbers like `1.2.3`, which are text here.
    """
    pieces: list[Span] = []
    scales: list[_Scale] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    for mark in _MARK.finditer(prompt):
        kind = mark.lastgroup
        if kind == "escaped":
            pieces.append(Span(mark["escaped"], 1.0))
        elif kind == "open":
            opened[mark["open"]].append(len(pieces))
        elif kind == "weight" and opened["("]:
            factor = max(-LIMIT, min(LIMIT, float(mark["weight"])))
            scales.append(_Scale(opened["("].pop(), len(pieces), factor))
        elif kind == "close" and mark["close"] == ")" and opened["("]:
            scales.append(_Scale(opened["("].pop(), len(pieces), ROUND))
        elif kind == "close" and mark["close"] == "]" and opened["["]:
            scales.append(_Scale(opened["["].pop(), len(pieces), SQUARE))
        else:
            pieces.extend(_split_at_breaks(mark[0]))

    scales += [_Scale(start, len(pieces), ROUND) for start in opened["("]]
    scales += [_Scale(start, len(pieces), SQUARE) for start in opened["["]]
    weights = _scaled([piece.weight for piece in pieces], scales)
    spans = zip(weights, (piece.text for piece in pieces), strict=True)
    merged = [Span("".join(text for _, text in run), weight) for weight, run in groupby(spans, key=lambda s: s[0])]
    return merged or [Span("", 1.0)]


def _split_at_breaks(text: str) -> list[Span]:
    """Text around its BREAK marks; white space beside a mark belongs to the mark."""
    parts = _BREAK.split(text)
    spans: list[Span] = []
    for number, part in enumerate(parts):
        if number > 0:
            spans.append(BREAK)
            part = part.lstrip()
        if number < len(parts) - 1:
            part = part.rstrip()
        spans.append(Span(part, 1.0))
    return spans


def _scaled(weights: list[float], scales: list[_Scale]) -> list[float]:
    """Multiply each piece in the order in which its marks close: the reference's very rounding."""
    import numpy as np  # not above: the server reads prompts, and has no arrays

    array = np.array(weights, dtype=np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        for start, stop, factor in scales:
            array[start:stop] *= factor
    return np.clip(np.nan_to_num(array, nan=0.0), -LIMIT, LIMIT).tolist()


def extract_loras(prompt: str) -> tuple[str, list[LoraTag]]:
    """Take the `<lora:...>` tags out of a prompt: what remains of it, and the tags in order.

    `<lora:name>` counts as strength 1; `<lora:name:0.8>` sets both strengths, `<lora:name:0.5:0.8>` the text encoder's
    and the network's; `te=` and `unet=` set one of them. Raises InvalidRequest for a tag that cannot be read so.
    """
    tags = [_lora_tag(tag[0], tag[1]) for tag in _LORA.finditer(prompt)]
    return _LORA.sub("", prompt), tags


def _lora_tag(tag: str, inside: str) -> LoraTag:
    name, *rest = (part.strip() for part in inside.split(":"))
    named = dict(part.split("=", 1) for part in rest if "=" in part)
    plain = [part for part in rest if "=" not in part]
    text = named.get("te", plain[0] if plain else "1")
    network = named.get("unet", plain[1] if len(plain) > 1 else text)
    try:
        strengths = float(network), float(text)
    except ValueError:
        strengths = math.nan, math.nan
    if not name or not all(map(math.isfinite, strengths)):
        raise InvalidRequest(f"{tag} in the prompt names no LoRA and strength: write <lora:name:0.8>.")
    return LoraTag(name, *strengths)
