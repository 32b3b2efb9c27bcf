"""A prompt as the text encoder gets it: chunks of 75 tokens with a multiplier each; torch-free.

    tokenized = tokenize_prompt("an apple BREAK a (bowl:1.2)", clip_tokenizer())
    tokenized.chunks[0].tokens          # 77 ids: start, 75 tokens padded with the end token, end
    tokenized.token_count               # 75 for each full or broken-off chunk, plus what the last one holds

A text encoder reads 77 tokens; a longer prompt is read in several pieces, whose embeddings are joined afterwards.
"""

from typing import NamedTuple

from layerdiffuse_mcp.text.emphasis import BREAK, parse_emphasis
from layerdiffuse_mcp.text.tokenizer import ClipTokenizer, clip_tokenizer

__all__ = ["CHUNK_LENGTH", "CHUNK_SIZE", "Chunk", "TokenizedPrompt", "count_tokens", "tokenize_prompt"]

CHUNK_SIZE = 75
"""Tokens of the prompt in a chunk."""
CHUNK_LENGTH = CHUNK_SIZE + 2
"""Tokens that the text encoder reads at once: a chunk with its start and end."""
COMMA_REACH = 20
"""A full chunk gives what follows its last comma to the next one, if that is no more than this many tokens."""


class Chunk(NamedTuple):
    """77 token ids and 77 multipliers."""

    tokens: list[int]
    multipliers: list[float]


class TokenizedPrompt(NamedTuple):
    """All chunks of a prompt, one at least, and its length in tokens as A1111 counts it."""

    chunks: list[Chunk]
    token_count: int


def tokenize_prompt(prompt: str, tokenizer: ClipTokenizer) -> TokenizedPrompt:
    """Emphasis, tokens, chunks: exactly the reference's (`tokenize_line` of A1111 and Forge) for any text."""
    chunks: list[Chunk] = []
    current: list[tuple[int, float]] = []
    last_comma: int | None = None

    def finish() -> None:
        nonlocal current, last_comma
        padding = CHUNK_LENGTH - 1 - len(current)
        tokens = [tokenizer.start, *(token for token, _ in current), *[tokenizer.end] * padding]
        chunks.append(Chunk(tokens, [1.0, *(weight for _, weight in current), *[1.0] * padding]))
        current, last_comma = [], None

    for span in parse_emphasis(prompt):
        if span == BREAK:
            finish()
            continue
        for token in tokenizer.encode(span.text):
            if len(current) == CHUNK_SIZE:
                carried: list[tuple[int, float]] = []
                if token != tokenizer.comma and last_comma is not None and CHUNK_SIZE - last_comma <= COMMA_REACH:
                    carried = current[last_comma + 1 :]
                    del current[last_comma + 1 :]
                finish()
                current = carried
            if token == tokenizer.comma:
                last_comma = len(current)
            current.append((token, span.weight))

    count = CHUNK_SIZE * len(chunks) + len(current)
    if current or not chunks:
        finish()
    return TokenizedPrompt(chunks, count)


def count_tokens(prompt: str) -> int:
    """Tokens of a prompt as A1111 counts them, the padding of broken-off chunks included (full CLIP vocabulary)."""
    return tokenize_prompt(prompt, clip_tokenizer()).token_count
