"""The CLIP tokenizer, from the merges that lie beside this file: no hub is asked for it.

    tokenizer = clip_tokenizer()
    tokenizer.encode("an apple")        # [550, 3055]

CLIP's vocabulary is derived from its byte-pair merges alone: the 256 byte symbols, the same 256 as word ends, one entry
a merge in order, then the start and the end token. A text encoder with a smaller embedding table (the pocket model)
uses the same merges, cut short. The `tokenizers` library does the merging: it loads far faster than transformers.
"""

import gzip
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from layerdiffuse_mcp.errors import CheckpointError

__all__ = ["ClipTokenizer", "clip_tokenizer"]

FULL_ROWS = 49_408
"""Rows of the embedding table of every published CLIP text encoder."""

_SYMBOLS = 256
_NOT_MERGED = 2 * _SYMBOLS + 2  # symbols, symbols that end a word, start and end token
_WORD_END = "</w>"
_START, _END = "<|startoftext|>", "<|endoftext|>"
# letters in one run, digits one by one, other marks in one run (CLIP's simple_tokenizer.py)
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@dataclass(frozen=True, slots=True)
class ClipTokenizer:
    """Turns text into CLIP's token ids. `start`, `end`, `comma` are the ids that the chunking must know."""

    start: int
    end: int
    comma: int
    backend: Tokenizer

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without start and end; half a character (a lone surrogate) reads as a question mark."""
        return self.backend.encode(text.encode("utf-8", "replace").decode(), add_special_tokens=False).ids


@lru_cache(maxsize=4)
def clip_tokenizer(rows: int = FULL_ROWS) -> ClipTokenizer:
    """The tokenizer for a text encoder whose embedding table has `rows` rows.

    Below 49,408 rows the vocabulary is CLIP's with its first `rows - 514` merges only; rows beyond that are never used.
    Raises CheckpointError below 514 rows, which cannot hold the bytes.
    """
    if rows < _NOT_MERGED:
        raise CheckpointError(f"The text encoder knows {rows} tokens; a CLIP text encoder has at least {_NOT_MERGED}.")
    merges = _merges()[: rows - _NOT_MERGED]
    symbols = _byte_symbols()
    entries = [*symbols, *(symbol + _WORD_END for symbol in symbols), *(a + b for a, b in merges), _START, _END]
    vocabulary = {entry: number for number, entry in enumerate(entries)}

    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, end_of_word_suffix=_WORD_END, unk_token=_END))
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in (_START, _END)])
    return ClipTokenizer(vocabulary[_START], vocabulary[_END], vocabulary["," + _WORD_END], backend)


def _merges() -> list[tuple[str, str]]:
    packed = files(__name__).joinpath("clip_merges.txt.gz").read_bytes()
    pairs = (line.split(" ") for line in gzip.decompress(packed).decode().splitlines())
    return [(left, right) for left, right in pairs]


def _byte_symbols() -> list[str]:
    """Printable stand-ins of the 256 bytes, in vocabulary order: visible Latin-1 as itself, the rest from U+0100."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(byte) for byte in visible] + [chr(0x100 + n) for n in range(_SYMBOLS - len(visible))]
