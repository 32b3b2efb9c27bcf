"""Published parameter texts become requests and come back the same."""

import pytest

from layerdiffuse_mcp.families.registry import METHODS
from layerdiffuse_mcp.families.spec import Task
from layerdiffuse_mcp.recipes import infotext
from layerdiffuse_mcp.recipes.a1111 import infotext_of, request_of
from tests.test_infotext import SANITY_CHECKS as PARAMETER_TEXTS


@pytest.mark.parametrize("text", PARAMETER_TEXTS, ids=range(len(PARAMETER_TEXTS)))
def test_a_published_text_becomes_a_request_and_comes_back_the_same(text: str) -> None:
    info = infotext.parse(text)
    request = request_of(info)
    assert (request.prompt, request.seed, request.steps) == (info.prompt, 12345, 20)
    assert infotext.format(infotext_of(request, info)) == text


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.id)
def test_every_method_has_a_name_that_leads_back_to_it(method) -> None:
    info = infotext.Infotext(prompt="an apple", layer_method=method.forge_name)
    assert request_of(info).method == method.id


def test_a_changed_request_changes_only_what_it_says() -> None:
    info = infotext.parse(PARAMETER_TEXTS[0])
    changed = infotext_of(request_of(info).model_copy(update={"seed": 7}), info)
    assert infotext.format(changed) == PARAMETER_TEXTS[0].replace("Seed: 12345", "Seed: 7")


def test_the_later_spelling_of_a_method_is_read() -> None:
    info = infotext.Infotext(prompt="x", layer_method="(SD1.5) Generate Everything Together (need batch size 3)")
    assert request_of(info).task is Task.LAYERS
