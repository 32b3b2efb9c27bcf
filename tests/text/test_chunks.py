"""Tokens are CLIP's, and a prompt is cut into chunks where A1111 cuts it."""

import json
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from layerdiffuse_mcp.errors import CheckpointError
from layerdiffuse_mcp.text.chunks import CHUNK_SIZE, INVERTED, count_tokens, named_in, tokenize_prompt
from layerdiffuse_mcp.text.tokenizer import clip_tokenizer

START, END, COMMA = 49406, 49407, 267


def words(chunk_tokens: list[int]) -> list[int]:
    return [token for token in chunk_tokens if token not in (START, END)]


@pytest.fixture(scope="module")
def transformers_tokenizer() -> CLIPTokenizer:
    model = json.loads(clip_tokenizer().backend.to_str())["model"]
    return CLIPTokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])


@given(text=st.text() | st.text("aB'sé漢9!🎈 ,.<|endoftext|>", max_size=80))
@settings(deadline=None)
def test_tokens_are_those_of_transformers(transformers_tokenizer: CLIPTokenizer, text: str) -> None:
    assert clip_tokenizer().encode(text) == transformers_tokenizer(text, add_special_tokens=False)["input_ids"]


def test_the_vocabulary_is_that_of_clip() -> None:
    tokenizer = clip_tokenizer()
    assert (tokenizer.start, tokenizer.end, tokenizer.comma) == (START, END, COMMA)
    assert tokenizer.encode("A photo of a cat, <|endoftext|>") == [320, 1125, 539, 320, 2368, COMMA, END]
    assert clip_tokenizer(50_000).encode("A photo") == [320, 1125]


def test_half_a_character_reads_as_a_question_mark() -> None:
    assert clip_tokenizer().encode("a\ud83d") == clip_tokenizer().encode("a?")


@pytest.mark.parametrize("rows", [514, 1024, 8192])
def test_a_small_embedding_table_gets_the_first_merges_only(rows: int) -> None:
    small = clip_tokenizer(rows)
    assert (small.start, small.end, small.comma) == (rows - 2, rows - 1, COMMA)
    assert small.backend.get_vocab_size() == rows
    tokens = small.encode("an apple, 漢字 🎈")
    assert max(tokens) < rows - 2
    assert "".join(small.backend.id_to_token(token) for token in tokens).startswith("an</w>apple</w>,</w>")
    assert clip_tokenizer(rows) is small


def test_a_table_too_small_for_bytes_is_refused() -> None:
    with pytest.raises(CheckpointError, match="514"):
        clip_tokenizer(513)


def test_a_full_chunk_gives_what_follows_its_last_comma_to_the_next() -> None:
    first, second = tokenize_prompt("a " * 60 + ", " + "b " * 14 + "c", clip_tokenizer()).chunks
    assert len(words(first.tokens)) == 61
    assert len(words(second.tokens)) == 15


def test_a_comma_too_far_back_does_not_move_the_cut() -> None:
    first, second = tokenize_prompt("a " * 53 + ", " + "b " * 21 + "c", clip_tokenizer()).chunks
    assert len(words(first.tokens)) == CHUNK_SIZE
    assert len(words(second.tokens)) == 1


def test_weights_move_with_their_tokens() -> None:
    first, second = tokenize_prompt("a " * 73 + ", (b c:1.5) (d:0.5)", clip_tokenizer()).chunks
    assert set(first.multipliers) == {1.0}
    assert second.multipliers[:4] == [1.0, 1.5, 1.5, 0.5]


@given(st.text() | st.text("a, (b:1.2)[]BREAK\\", max_size=400))
@settings(deadline=None)
def test_chunks_are_well_formed_and_lose_no_token(prompt: str) -> None:
    chunks, count = tokenize_prompt(prompt, clip_tokenizer())
    assert chunks
    for chunk in chunks:
        assert len(chunk.tokens) == len(chunk.multipliers) == CHUNK_SIZE + 2
        assert (chunk.tokens[0], chunk.tokens[-1]) == (START, END)
        assert chunk.multipliers[0] == chunk.multipliers[-1] == 1.0
    assert (len(chunks) - 1) * CHUNK_SIZE <= count <= len(chunks) * CHUNK_SIZE
    assert count_tokens(prompt) == count


def test_ten_thousand_words_are_cut_at_once() -> None:
    started = time.process_time()
    assert count_tokens("word " * 10_000) == 10_000
    assert count_tokens("(word:1.2), " * 10_000) >= 20_000
    assert time.process_time() - started < 10


def test_counting_tokens_needs_no_torch() -> None:
    code = "import sys, layerdiffuse_mcp.text.chunks as c; print(c.count_tokens('a cat'), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "False"]


def test_a_textual_inversion_takes_the_place_of_the_tokens_of_its_name() -> None:
    [chunk], count = tokenize_prompt("a (Bad-Hands 5:1.5), cat", clip_tokenizer(), {"bad-hands": 3, "bad": 1})
    a, five, comma, cat = (clip_tokenizer().encode(word)[0] for word in ("a", "5", ",", "cat"))
    assert chunk.tokens[:8] == [START, a, *[INVERTED] * 3, five, comma, cat]
    assert chunk.multipliers[:8] == [1, 1, *[1.5] * 4, 1, 1]
    assert chunk.vectors == {2: ("bad-hands", 0), 3: ("bad-hands", 1), 4: ("bad-hands", 2)}
    assert count == count_tokens("a bad-hands 5, cat", {"bad-hands": 3}) == 7


def test_the_vectors_of_one_name_are_kept_in_one_chunk() -> None:
    """As the reference's: what has no room begins the next chunk, and nothing behind a comma goes with it."""
    first, second = tokenize_prompt("a " * 70 + ", b " + "charm c", clip_tokenizer(), {"charm": 8}).chunks
    assert (len(words(first.tokens)), first.vectors) == (72, {})
    assert second.vectors == {number + 1: ("charm", number) for number in range(8)}
    assert count_tokens("a " * 74 + "charm", {"charm": 75}) == 150


def test_what_a_full_chunk_gives_to_the_next_takes_its_vectors_along() -> None:
    first, second = tokenize_prompt("a " * 70 + ", charm b c", clip_tokenizer(), {"charm": 3}).chunks
    assert (len(words(first.tokens)), first.vectors) == (71, {})
    assert second.vectors == {number + 1: ("charm", number) for number in range(3)}


def test_only_whole_words_name_a_textual_inversion() -> None:
    known = {"charm": 2, "dark style": 4, "unused": 1}
    assert named_in("a charming cat, Dark  style", known) == {"dark style"}
    assert named_in("a CHARM BREAK dark", known) == {"charm"}
