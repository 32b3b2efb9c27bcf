"""Published parameter texts become requests and come back the same."""

import pytest

from layerdiffuse_mcp.errors import InvalidRequest, ModelNotFound
from layerdiffuse_mcp.families.registry import METHODS
from layerdiffuse_mcp.families.spec import Task
from layerdiffuse_mcp.recipes import infotext
from layerdiffuse_mcp.recipes.a1111 import infotext_of, request_from, request_of
from layerdiffuse_mcp.settings import Settings
from tests.recipes.test_infotext import SANITY_CHECKS as PARAMETER_TEXTS


@pytest.mark.parametrize("text", PARAMETER_TEXTS, ids=range(len(PARAMETER_TEXTS)))
def test_a_published_text_becomes_a_request_and_comes_back_the_same(text: str) -> None:
    info = infotext.parse(text)
    request = request_of(info)
    assert (request.prompt, request.seed, request.steps) == (info.prompt, 12345, 20)
    assert infotext.format(infotext_of(request, info)) == text


@pytest.mark.parametrize(
    "method", [method for method in METHODS.values() if method.forge_name], ids=lambda method: method.id
)
def test_a_methods_name_in_the_extension_leads_to_it(method) -> None:
    info = infotext.Infotext(prompt="an apple", layer_method=method.forge_name)
    assert request_of(info).method == method.id


def test_a_changed_request_changes_only_what_it_says() -> None:
    info = infotext.parse(PARAMETER_TEXTS[0])
    changed = infotext_of(request_of(info).model_copy(update={"seed": 7}), info)
    assert infotext.format(changed) == PARAMETER_TEXTS[0].replace("Seed: 12345", "Seed: 7")


def test_the_later_spelling_of_a_method_is_read() -> None:
    info = infotext.Infotext(prompt="x", layer_method="(SD1.5) Generate Everything Together (need batch size 3)")
    assert request_of(info).task is Task.LAYERS


def test_a_published_text_is_a_request_for_the_base_that_it_names(settings: Settings) -> None:
    found = {text: infotext.parse(text) for text in PARAMETER_TEXTS}
    named = {text: info for text, info in found.items() if info.model != "animaPencilXL_v100"}
    known = {text: request_from(info, {}, settings) for text, info in named.items()}
    assert {request.model for request in known.values()} == {"juggernaut-xl-v6", "realistic-vision-v51"}
    for text, request in known.items():
        assert request.notes == (), text
        assert request.drawn_with == {"model": found[text].model_hash}
    [strange] = found.keys() - known.keys()
    with pytest.raises(ModelNotFound, match=r"animaPencilXL_v100.*changes\.options\.model names another"):
        request_from(found[strange], {}, settings)
    assert request_from(found[strange], {"model": "juggernaut-xl-v6"}, settings).model == "juggernaut-xl-v6"


STRANGE = """a cup
Steps: 9000, Sampler: Restart, Seed: 1, Size: 9x9, Model: pocket, Denoising strength: 0.4, VAE: kl.pt, \
layerdiffusion_weight: 0.5, layerdiffusion_bg_additional_prompt: a table"""


def test_what_has_no_counterpart_here_is_said_and_what_is_wrong_can_be_replaced(settings: Settings) -> None:
    info = infotext.parse(STRANGE)
    changes = {"steps": 3, "sampler": "Euler", "width": 64, "height": 64}
    request = request_from(info, changes, settings)
    assert (request.steps, request.sampler, request.layer_weight, request.layer_prompts) == (3, "Euler", None, {})
    said = " ".join(request.notes)
    for word in ("VAE: kl.pt", "Denoising strength", "layerdiffusion_weight", "only foreground is", "no layerdiff"):
        assert word in said
    assert "another" in " ".join(request_from(info, {**changes, "prompt": "a jug"}, settings).notes)
    with pytest.raises(InvalidRequest, match="steps must be at most 150"):
        request_from(info, {}, settings)
