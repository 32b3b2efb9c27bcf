"""A prompt of several, and a prompt that changes while it is drawn, as A1111 and Forge read them; torch-free.

    composed("a cat AND a dog:0.5")             # [Weighted("a cat ", 1.0), Weighted(" a dog", 0.5)]
    scheduled("a [cat:dog:0.5]", calls=20)      # [Part(10, "a cat"), Part(20, "a dog")]

    [from:to:when]  [to:when]  [from::when]     from one text to the other, or from or to nothing
    [one|two|three]                             another one in each call, in turn
    one AND two:0.5                             both at once, each with its weight; a weight may stand without AND, too

`when` is the number of a call, or with a point in it a share of them all. The marks of emphasis stay in the texts, for
`emphasis.py`. Calls count from 0, and a part lasts to the call that it ends at, that one included: so the first part
has a call more than its share, as in the reference. Brackets that do not fit together are text, and a bar outside of
square brackets makes all of a prompt text.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.wording import short

__all__ = ["MAX_TOGETHER", "Part", "Weighted", "composed", "scheduled"]

MAX_TOGETHER, MAX_WEIGHT = 8, 100.0
"""Prompts that AND joins, each of which takes a pass of the network; and their weights, at most."""
MAX_DEPTH = 40
"""Of changes within changes."""

_AND = re.compile(r"\bAND\b")
_WEIGHT = re.compile(r"[-+]?(?:[0-9]+\.?|[0-9]*\.[0-9]+)")
_TEXT = re.compile(r"(?:[^\\\[\]():|]|\\.)+")
_WHEN = re.compile(r"\s*([-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)\s*")
_CLOSED_BY = {")": "(", "]": "["}


class Weighted(NamedTuple):
    """One of the prompts that AND joins, and its weight."""

    text: str
    weight: float


class Part(NamedTuple):
    """What a prompt says up to a call of the denoiser, that one included."""

    end: int
    text: str


def composed(prompt: str) -> list[Weighted]:
    """The prompts that AND joins, one at least.

    Raises:
        InvalidRequest: they are more than `MAX_TOGETHER`, or a weight is larger than `MAX_WEIGHT`.
    """
    prompts = [_weighted(text) for text in _AND.split(prompt)]
    if len(prompts) > MAX_TOGETHER:
        raise InvalidRequest(f"AND joins {len(prompts)} prompts, and at most {MAX_TOGETHER} are drawn together.")
    for text, weight in prompts:
        if not math.fabs(weight) <= MAX_WEIGHT:
            raise InvalidRequest(f"The weight {weight:g} behind {short(text.strip())!r} is more than {MAX_WEIGHT:g}.")
    return prompts


def _weighted(prompt: str) -> Weighted:
    text, colon, weight = prompt.rpartition(":")
    if colon and _WEIGHT.fullmatch(weight.strip()):
        return Weighted(text.rstrip(), float(weight))
    return Weighted(prompt.rstrip(), 1.0)


def scheduled(prompt: str, calls: int) -> list[Part]:
    """What a prompt says in each of so many calls, one part at least, in order.

    Raises:
        InvalidRequest: changes stand within each other more than `MAX_DEPTH` deep.
    """
    pieces = _parsed(prompt)
    if pieces is None or not any(isinstance(piece, _Change) for piece in pieces):
        return [Part(calls, prompt)]
    ends = sorted({calls, *_ends(pieces, calls)})
    return [Part(end, "".join(_said(pieces, end, calls))) for end in ends]


@dataclass
class _Change:
    """A text that changes: one of `choices` in each call. when: up to which call it is the first; None: in turn."""

    choices: list["_Pieces"]
    when: str | None
    depth: int

    def chosen(self, call: int, calls: int) -> "_Pieces":
        if self.when is None:
            return self.choices[(call - 1) % len(self.choices)]
        return self.choices[0 if call <= _call(self.when, calls) else 1]


_Pieces = list[str | _Change]


@dataclass
class _Open:
    """A bracket that is open: what is in it so far, and where its marks stand."""

    mark: str
    fields: list[_Pieces] = field(default_factory=lambda: [[]])
    marks: list[str] = field(default_factory=list[str])
    last: int = 0
    """Where its last field begins in the prompt."""


def _parsed(prompt: str) -> _Pieces | None:
    """A prompt in pieces; None where a mark stands in it for which there is no place, so that all of it is text."""
    whole = _Open("")
    opened = [whole]
    position = 0
    while position < len(prompt):
        if match := _TEXT.match(prompt, position):
            opened[-1].fields[-1].append(match[0])
            position = match.end()
            continue
        mark, inner = prompt[position], opened[-1]
        position += 1
        if mark in "([":
            opened.append(_Open(mark, last=position))
        elif mark in ":|" and _may_stand(mark, inner):
            inner.marks.append(mark)
            inner.fields.append([])
            inner.last = position
        elif mark in ")]" and inner.mark == _CLOSED_BY[mark] and (pieces := _closed(inner, prompt, position)):
            opened.pop()
            opened[-1].fields[-1] += pieces
        elif mark not in "[]():" or any("|" in one.marks for one in opened):
            return None
        else:  # it fits nowhere: neither it nor what is open around it is a mark
            whole.fields[0] += [*_flat(opened[1:]), mark]
            del opened[1:]
    if any("|" in one.marks for one in opened):
        return None
    return [*whole.fields[0], *_flat(opened[1:])]


def _may_stand(mark: str, inner: _Open) -> bool:
    """Whether a colon or a bar can be a mark here: bars in square brackets, and never both in the same."""
    most = {"(": ":", "[": "::"}.get(inner.mark, "")
    return (inner.mark == "[" and set(inner.marks) <= {"|"}) if mark == "|" else "".join([*inner.marks, mark]) in most


def _closed(inner: _Open, prompt: str, end: int) -> _Pieces | None:
    """What a bracket is that closes at `end`; None where it is no change and no emphasis."""
    depth = 1 + max((p.depth for pieces in inner.fields for p in pieces if isinstance(p, _Change)), default=0)
    if depth > MAX_DEPTH:
        raise InvalidRequest(f"The prompt has changes within changes, more than {MAX_DEPTH} deep: write it flatter.")
    if "|" in inner.marks:
        return [_Change(inner.fields, None, depth)]
    if inner.mark == "[" and inner.marks:
        when = _WHEN.fullmatch(prompt, inner.last, end - 1)
        before = inner.fields[0] if len(inner.marks) == 2 else []
        return [_Change([before, inner.fields[-2]], when[1], depth)] if when else None
    pieces: _Pieces = []
    for piece in [*_as_text(inner), prompt[end - 1]]:  # neighbours as one, so that thousands of brackets take no time
        if pieces and isinstance(piece, str) and isinstance(pieces[-1], str):
            pieces[-1] += piece
        else:
            pieces.append(piece)
    return pieces


def _as_text(one: _Open) -> _Pieces:
    """A bracket with its marks as text, and what is in it."""
    pieces: _Pieces = [one.mark, *one.fields[0]]
    for mark, more in zip(one.marks, one.fields[1:], strict=True):
        pieces += [mark, *more]
    return pieces


def _flat(opened: Sequence[_Open]) -> Iterator[str | _Change]:
    """What brackets hold that never closed, their marks among it."""
    for one in opened:
        yield from _as_text(one)


def _call(when: str, calls: int) -> int:
    """The call that a change is at: a share of all where it has a point, else its number."""
    number = float(when) * calls if "." in when else float(when)
    return min(calls, int(max(-1.0, min(number, calls))))


def _ends(pieces: _Pieces, calls: int) -> Iterator[int]:
    for piece in pieces:
        if isinstance(piece, _Change):
            if piece.when is None:
                yield from range(1, calls + 1)
            elif (call := _call(piece.when, calls)) >= 1:
                yield call
            for choice in piece.choices:
                yield from _ends(choice, calls)


def _said(pieces: _Pieces, call: int, calls: int) -> Iterator[str]:
    for piece in pieces:
        if isinstance(piece, str):
            yield piece
        else:
            yield from _said(piece.chosen(call, calls), call, calls)
