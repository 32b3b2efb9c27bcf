"""The marks in prompts mean what they mean in A1111, and no text breaks the parser."""

import math
import re
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.text.emphasis import BREAK, LIMIT, LoraTag, Span, extract_loras, parse_emphasis

MARKS = ["BREAK ", " BREAK", ":1.5)", "a", "b", *" ((([[[)))]]]:\\.125+-,"]
marked_texts = st.lists(st.sampled_from(MARKS), max_size=60).map("".join)


@pytest.mark.parametrize(
    ("prompt", "spans"),
    [
        ("a (red:1.3) cup", [("a ", 1.0), ("red", 1.3), (" cup", 1.0)]),
        ("((red)) [cup]", [("red", 1.1 * 1.1), (" ", 1.0), ("cup", 1 / 1.1)]),
        ("(a [b:2) c]", [("a ", 2.0), ("b", 2.0 * (1 / 1.1)), (" c", 1 / 1.1)]),
        (r"\(a\) \[b\] \\ \c", [(r"(a) [b] \ c", 1.0)]),
        ("(a: +.5 )", [("a", 0.5)]),
        ("a:1.2) b] (c", [("a:1.2) b] ", 1.0), ("c", 1.1)]),
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
        ("(a:.)", [("a:.", 1.1)]),
        ("a: b", [("a: b", 1.0)]),
        ("", [("", 1.0)]),
        ("((", [("", 1.0)]),
    ],
)
def test_marks_set_the_weight_of_what_they_enclose(prompt: str, spans: list[tuple[str, float]]) -> None:
    assert parse_emphasis(prompt) == spans


def test_break_takes_the_white_space_around_it() -> None:
    assert parse_emphasis("a \n BREAK\tb BREAKFAST") == [("a", 1.0), BREAK, ("b BREAKFAST", 1.0)]
    assert parse_emphasis("BREAK BREAK") == [("", 1.0), BREAK, ("", 1.0), BREAK, ("", 1.0)]


def test_break_inside_of_brackets_is_a_word_as_in_the_reference() -> None:
    assert parse_emphasis("(a BREAK b:2)") == [("a", 2.0), ("BREAK", -2.0), ("b", 2.0)]


def test_a_huge_weight_is_held_at_the_limit() -> None:
    assert parse_emphasis("(a:" + "9" * 400 + ")") == [("a", LIMIT)]
    assert parse_emphasis("(a:-" + "9" * 400 + ")") == [("a", -LIMIT)]
    assert parse_emphasis("(" * 9000 + "(a:0) b") == [("a", 0.0), (" b", LIMIT)]


@given(st.text() | marked_texts)
def test_any_text_gives_spans_of_finite_weight_none_equal_to_its_neighbour(text: str) -> None:
    spans = parse_emphasis(text)
    assert spans
    assert all(math.isfinite(weight) and abs(weight) <= LIMIT for _, weight in spans)
    assert all(a.weight != b.weight for a, b in pairwise(spans))
    assert parse_emphasis(text) == spans


@given(marked_texts.filter(lambda text: "BREAK" not in text))
def test_escaped_text_is_plain_text(text: str) -> None:
    assert parse_emphasis(re.sub(r"([()\[\]\\])", r"\\\1", text)) == [Span(text, 1.0)]


@given(marked_texts.filter(lambda text: "BREAK" not in text), st.sampled_from([0.5, 1.1, 2.0]))
def test_brackets_around_everything_multiply_everything(text: str, factor: float) -> None:
    text = text.translate({ord(mark): None for mark in "()[]\\"})
    assert parse_emphasis(f"({text} :{factor})") == [Span(text + " ", factor)]


@pytest.mark.parametrize(
    "prompt",
    ["word " * 10_000, "(a " * 10_000 + ")" * 10_000, "[" * 30_000, " " * 100_000, "(:" + "1" * 100_000,
     "BREAK " * 10_000, "<lora:" * 20_000],
    ids=lambda prompt: prompt[:8],
)  # fmt: skip
def test_a_prompt_of_ten_thousand_words_is_read_at_once(prompt: str) -> None:
    started = time.process_time()
    parse_emphasis(prompt)
    extract_loras(prompt)
    assert time.process_time() - started < 10


def test_lora_tags_are_taken_out_of_the_prompt_in_order() -> None:
    prompt = "a <lora:film:0.8>cat <lora:two parts:0.5:1>, hat<lora:plain><lora:named:te=0.2:unet=0.3>"
    assert extract_loras(prompt) == (
        "a cat , hat",
        [
            LoraTag("film", 0.8, 0.8),
            LoraTag("two parts", 1.0, 0.5),
            LoraTag("plain", 1.0, 1.0),
            LoraTag("named", 0.3, 0.2),
        ],
    )


@pytest.mark.parametrize("tag", ["<lora:film:much>", "<lora::1>", "<lora:film:nan>", "<lora:film:1e999>"])
def test_a_lora_tag_that_cannot_be_read_is_an_error_that_shows_it(tag: str) -> None:
    with pytest.raises(InvalidRequest, match=tag):
        extract_loras(f"a cat {tag}")


@given(st.text())
def test_a_prompt_without_tags_stays_as_it_is(prompt: str) -> None:
    prompt = prompt.replace("<", "")
    assert extract_loras(prompt) == (prompt, [])
