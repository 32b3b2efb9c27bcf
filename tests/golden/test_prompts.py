"""Prompts are read as the reference reads them: spans, token counts, chunks and multipliers, all exactly."""

import pytest

from layerdiffuse_mcp.text.chunks import count_tokens, tokenize_prompt
from layerdiffuse_mcp.text.emphasis import parse_emphasis
from layerdiffuse_mcp.text.tokenizer import clip_tokenizer

from .conftest import GoldenSet


def test_prompts_are_split_weighted_and_tokenized_as_the_reference_does(
    golden: GoldenSet, subtests: pytest.Subtests
) -> None:
    assert golden.prompts
    for name, case in golden.prompts.items():
        with subtests.test(name):
            tokenized = tokenize_prompt(case["prompt"], clip_tokenizer())
            assert [list(span) for span in parse_emphasis(case["prompt"])] == case["parsed"]
            assert count_tokens(case["prompt"]) == tokenized.token_count == case["token_count"]
            assert [chunk._asdict() for chunk in tokenized.chunks] == [
                chunk | {"vectors": {}} for chunk in case["chunks"]
            ]
