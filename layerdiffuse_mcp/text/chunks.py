"""A prompt as the text encoder gets it: chunks of 75 tokens with a multiplier each; torch-free.

    tokenized = tokenize_prompt("an apple BREAK a (bowl:1.2)", clip_tokenizer())
    tokenized.chunks[0].tokens          # 77 ids: start, 75 tokens padded with the end token, end
    tokenized.token_count               # 75 for each full or broken-off chunk, plus what the last one holds
    tokenize_prompt("a cat, easynegative", clip_tokenizer(), {"easynegative": 8}).chunks[0].vectors

A textual inversion takes the place of its name's tokens, as many as it has vectors, all in one chunk. A text encoder
reads 77 tokens; a longer prompt is read in several pieces, whose embeddings are joined afterwards.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from layerdiffuse_mcp.text.emphasis import BREAK, parse_emphasis
from layerdiffuse_mcp.text.tokenizer import ClipTokenizer, clip_tokenizer

__all__ = ["CHUNK_LENGTH", "CHUNK_SIZE", "Chunk", "TokenizedPrompt", "count_tokens", "named_in", "tokenize_prompt"]

CHUNK_SIZE = 75
"""Tokens of the prompt in a chunk."""
CHUNK_LENGTH = CHUNK_SIZE + 2
"""Tokens that the text encoder reads at once: a chunk with its start and end."""
COMMA_REACH = 20
"""A full chunk gives what follows its last comma to the next one, if that is no more than this many tokens."""


INVERTED = 0
"""The token that stands where a vector of a textual inversion goes."""
Vector = tuple[str, int]
"""A textual inversion and the number of one of its vectors, from 0."""


class Chunk(NamedTuple):
    """77 token ids and 77 multipliers; `vectors` take the place of tokens, by their position."""

    tokens: list[int]
    multipliers: list[float]
    vectors: Mapping[int, Vector]


class _Place(NamedTuple):
    """What lies in one place of a chunk."""

    token: int
    weight: float
    vector: Vector | None = None


class TokenizedPrompt(NamedTuple):
    """All chunks of a prompt, one at least, and its length in tokens as A1111 counts it."""

    chunks: list[Chunk]
    token_count: int


def tokenize_prompt(
    prompt: str, tokenizer: ClipTokenizer, inversions: Mapping[str, int] | None = None
) -> TokenizedPrompt:
    """Emphasis, tokens, chunks: exactly the reference's (`tokenize_line` of A1111 and Forge) for any text.

    `inversions`: how many vectors each textual inversion has, 1 to 75, by its name. One point differs: what a full
    chunk gives to the next takes its vectors along, which the reference leaves behind.
    """
    chunks: list[Chunk] = []
    current: list[_Place] = []
    names = _by_first_token(inversions or {}, tokenizer)
    last_comma: int | None = None

    def finish() -> None:
        nonlocal current, last_comma
        padding = CHUNK_LENGTH - 1 - len(current)
        tokens = [tokenizer.start, *(place.token for place in current), *[tokenizer.end] * padding]
        vectors = {number: place.vector for number, place in enumerate(current, 1) if place.vector}
        chunks.append(Chunk(tokens, [1.0, *(place.weight for place in current), *[1.0] * padding], vectors))
        current, last_comma = [], None

    for span in parse_emphasis(prompt):
        if span == BREAK:
            finish()
            continue
        for token, name in _named(tokenizer.encode(span.text), names):
            if len(current) == CHUNK_SIZE:
                carried: list[_Place] = []
                if token != tokenizer.comma and last_comma is not None and CHUNK_SIZE - last_comma <= COMMA_REACH:
                    carried = current[last_comma + 1 :]
                    del current[last_comma + 1 :]
                finish()
                current = carried
            if name is not None:
                count = (inversions or {})[name]
                if len(current) + count > CHUNK_SIZE:
                    finish()
                current += [_Place(INVERTED, span.weight, (name, number)) for number in range(count)]
                continue
            if token == tokenizer.comma:
                last_comma = len(current)
            current.append(_Place(token, span.weight))

    count = CHUNK_SIZE * len(chunks) + len(current)
    if current or not chunks:
        finish()
    return TokenizedPrompt(chunks, count)


def _by_first_token(inversions: Mapping[str, int], tokenizer: ClipTokenizer) -> dict[int, list[tuple[list[int], str]]]:
    """The tokens of names and the names, the longest first, by their first token."""
    found: dict[int, list[tuple[list[int], str]]] = {}
    for name in inversions:
        if tokens := tokenizer.encode(name):
            found.setdefault(tokens[0], []).append((tokens, name))
    return {first: sorted(names, key=lambda one: -len(one[0])) for first, names in found.items()}


def _named(tokens: list[int], names: Mapping[int, list[tuple[list[int], str]]]) -> Iterator[tuple[int, str | None]]:
    """Each token; of those that are a name's only the first, with that name."""
    position = 0
    while position < len(tokens):
        token = tokens[position]
        length, name = next(
            ((len(own), name) for own, name in names.get(token, ()) if tokens[position : position + len(own)] == own),
            (1, None),
        )
        yield token, name
        position += length


def count_tokens(prompt: str, inversions: Mapping[str, int] | None = None) -> int:
    """Tokens of a prompt as A1111 counts them, the padding of broken-off chunks included (full CLIP vocabulary)."""
    return tokenize_prompt(prompt, clip_tokenizer(), inversions).token_count


def named_in(prompt: str, inversions: Mapping[str, int]) -> set[str]:
    """The textual inversions that a prompt names."""
    chunks = tokenize_prompt(prompt, clip_tokenizer(), inversions).chunks if inversions else ()
    return {name for chunk in chunks for name, _ in chunk.vectors.values()}
