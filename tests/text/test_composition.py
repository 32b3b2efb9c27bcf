"""Prompts of several, and prompts that change: what each call of the denoiser reads, by the reference's rules."""

import pytest

from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.text.composition import MAX_DEPTH, composed, scheduled

SCHEDULES: dict[str, list[tuple[int, str]]] = {
    # without a mark, all of it is one part
    "a cat": [(10, "a cat")],
    "": [(10, "")],
    # a share has a point in it, a number of calls has none; spaces around it do not count
    "a [cat:dog:0.5]": [(5, "a cat"), (10, "a dog")],
    "a [cat:dog:3]": [(3, "a cat"), (10, "a dog")],
    "a [cat:dog: .3 ]": [(3, "a cat"), (10, "a dog")],
    "a [cat:dog:5e-1]": [(10, "a dog")],
    "a [cat:dog:1.5]": [(10, "a cat")],
    # to and from nothing
    "a [cat:0.5]": [(5, "a "), (10, "a cat")],
    "a [cat::0.5]": [(5, "a cat"), (10, "a ")],
    "a [:cat:0.5]": [(5, "a "), (10, "a cat")],
    # at once, and never: a part that ends before the first call is none
    "[cat:dog:0]": [(10, "dog")],
    "[cat:dog:-2]": [(10, "dog")],
    "[cat:dog:99]": [(10, "cat")],
    # a part at every call in turn, empty ones among them
    "[a|b]c": [(call, "ab"[(call - 1) % 2] + "c") for call in range(1, 11)],
    "[fe|]male": [(call, "female" if call % 2 else "male") for call in range(1, 11)],
    # within each other
    "a[b:[c:d:2]:1]e": [(1, "abe"), (2, "ace"), (10, "ade")],
    "[[a|b]:c:0.2]": [(call, "ab"[(call - 1) % 2] if call <= 2 else "c") for call in range(1, 11)],
    "([a:b:0.5]:1.2)": [(5, "(a:1.2)"), (10, "(b:1.2)")],
    # emphasis stays a matter of emphasis
    "[dull] (red:1.3)": [(10, "[dull] (red:1.3)")],
    "a [[[b]]:2]": [(2, "a "), (10, "a [[b]]")],
    "[(a:2):3]": [(3, ""), (10, "(a:2)")],
    # marks that do not fit are text; what is whole behind them still counts
    "a [cat": [(10, "a [cat")],
    "((a][:b:c [d:3]": [(3, "((a][:b:c "), (10, "((a][:b:c d")],
    "[a:b:c:0.5]": [(10, "[a:b:c:0.5]")],
    "[a:b:soon]": [(10, "[a:b:soon]")],
    "[x (a:b:c) y:3]": [(10, "[x (a:b:c) y:3]")],
    # a bar without its brackets, or a backslash at the end, makes all of it text
    "a|b [c:3]": [(10, "a|b [c:3]")],
    "[a:b|c] [d:3]": [(10, "[a:b|c] [d:3]")],
    "(a|b) [c:3]": [(10, "(a|b) [c:3]")],
    "[c:3] \\": [(10, "[c:3] \\")],
    # escaped marks are none
    "\\[a|b\\]": [(10, "\\[a|b\\]")],
    "\\[a:b:3\\] [c:3]": [(3, "\\[a:b:3\\] "), (10, "\\[a:b:3\\] c")],
}
"""What each prompt says in ten calls, with the call up to which it does. The reference reads all of them so."""


@pytest.mark.parametrize("prompt", SCHEDULES)
def test_a_prompt_says_at_each_call_what_the_reference_reads(prompt: str):
    assert scheduled(prompt, 10) == SCHEDULES[prompt]


COMPOSED: dict[str, list[tuple[str, float]]] = {
    "a cat": [("a cat", 1)],
    "a cat AND a dog": [("a cat", 1), (" a dog", 1)],
    "a cat :1.5 AND a dog: -0.5 ": [("a cat", 1.5), (" a dog", -0.5)],
    "a cat:.5": [("a cat", 0.5)],
    "a (cat:1.2)": [("a (cat:1.2)", 1)],
    "ratio 4:3": [("ratio 4", 3)],  # as in the reference
    "a cat: dog": [("a cat: dog", 1)],
    "SAND and HAND": [("SAND and HAND", 1)],
    "AND": [("", 1), ("", 1)],
    "[a AND b:0.5]": [("[a", 1), (" b:0.5]", 1)],
}


@pytest.mark.parametrize("prompt", COMPOSED)
def test_prompts_are_joined_by_and_each_with_its_weight(prompt: str):
    assert composed(prompt) == COMPOSED[prompt]


@pytest.mark.parametrize("prompt", [f"a:{'9' * 400}", "a:1e9 AND b:101", " AND ".join("abcdefghi")])
def test_weights_and_prompts_without_end_are_refused(prompt: str):
    with pytest.raises(InvalidRequest, match=r"more than 100|at most 8"):
        composed(prompt)


def test_changes_within_changes_have_an_end():
    assert len(scheduled("[" * MAX_DEPTH + "a" + ":1]" * MAX_DEPTH, 10)) == 2
    with pytest.raises(InvalidRequest, match="write it flatter"):
        scheduled("[" * (MAX_DEPTH + 1) + "a" + ":1]" * (MAX_DEPTH + 1), 10)


@pytest.mark.parametrize("part", ["[", "(", ":", "[a:", "[a|b]", "[a:b:.5]", " "])
def test_the_longest_prompts_are_read_at_once(part: str):
    assert scheduled(part * (20_000 // len(part)), 10)
    assert scheduled("(" * 9_990 + "[a:b:.5]" + ")" * 9_990, 10)[0].end == 5
