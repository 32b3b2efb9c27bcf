"""Parameter texts are read as A1111 reads them and written so that it can read them."""

import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerdiffuse_mcp.api.choices import SAMPLERS, SCHEDULES
from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.families.registry import METHODS
from layerdiffuse_mcp.recipes import infotext
from layerdiffuse_mcp.recipes.infotext import Infotext
from layerdiffuse_mcp.recipes.sanity import published

ROOM = (
    "room, high quality\nNegative prompt: bad, ugly\nSteps: 20, Sampler: UniPC, CFG scale: 7, Seed: 12345, "
    "Size: 896x1152, Model hash: 1fe6c7ec54, Model: juggernautXL_version6Rundiffusion, layerdiffusion_enabled: True, "
    "layerdiffusion_method: From Foreground and Blending to Background, layerdiffusion_weight: 1, "
    "layerdiffusion_ending_step: 0.5, layerdiffusion_fg_image: True, layerdiffusion_bg_image: False, "
    "layerdiffusion_blend_image: True, layerdiffusion_resize_mode: Crop and Resize, "
    "Version: f0.0.17v1.8.0rc-latest-269-gef35383b"
)
"""Published, too, of pictures that are not."""
SANITY_CHECKS = [*published(), ROOM]


def test_the_published_texts_are_eight():
    assert len(published()) == 8


@pytest.mark.parametrize("text", SANITY_CHECKS, ids=lambda text: text[:24])
def test_a_published_text_is_understood_and_comes_back_word_for_word(text: str) -> None:
    info = infotext.parse(text)
    assert infotext.format(info) == text
    assert not info.other
    assert info.steps == 20
    assert info.seed == 12345
    assert info.sampler in SAMPLERS
    assert info.schedule is None or info.schedule in SCHEDULES
    assert info.layer_enabled is True
    assert info.layer_method in {method.forge_name for method in METHODS.values()}
    # rebuilt from its values alone it says the same, in today's spelling
    assert infotext.parse(infotext.format(replace(info, written={}))) == info


def test_every_field_of_a_published_text_gets_its_type() -> None:
    info = infotext.parse(SANITY_CHECKS[7])
    assert info == Infotext(
        prompt="high quality, 4k",
        negative_prompt="nsfw, bad, ugly",
        steps=20,
        sampler="DPM++ 2M",
        schedule="Karras",
        guidance_scale=7.0,
        seed=12345,
        size=(512, 512),
        model_hash="15012c538f",
        model="realisticVisionV51_v51VAE",
        layer_enabled=True,
        layer_method="(SD1.5) Generate Everything Together",
        layer_weight=1.0,
        stop_at=1.0,
        foreground_given=False,
        background_given=False,
        blended_given=False,
        resize_mode="Crop and Resize",
        foreground_prompt="apple",
        background_prompt="floor in room",
        blended_prompt="apple on floor in room",
        version="f0.0.17v1.8.0rc-latest-276-g29be1da7",
    )


def test_sampler_and_schedule_are_written_apart_unless_the_text_joined_them() -> None:
    assert infotext.format(Infotext(steps=4, sampler="DPM++ 2M SDE", schedule="Karras")) == (
        "Steps: 4, Sampler: DPM++ 2M SDE, Schedule type: Karras"
    )
    joined = infotext.parse("cat\nSteps: 4, Sampler: Euler SGM Uniform, CFG scale: 7")
    assert (joined.sampler, joined.schedule) == ("Euler", "SGM Uniform")
    changed = replace(joined, schedule="Karras", steps=5)
    assert infotext.format(changed) == "cat\nSteps: 5, Sampler: Euler Karras, CFG scale: 7"


def test_a_changed_field_leaves_the_others_as_they_were_written() -> None:
    info = infotext.parse("cat\nSeed: 007, Steps: 4, Mystery: 1.50, CFG scale: 7.0, RNG: GPU, Version: v1.9")
    assert info.noise_source == "nvidia"
    assert infotext.format(replace(info, steps=5, size=(64, 32))) == (
        "cat\nSeed: 007, Size: 64x32, Steps: 5, Mystery: 1.50, CFG scale: 7.0, RNG: GPU, Version: v1.9"
    )


def test_unknown_fields_are_kept() -> None:
    text = 'cat\nSteps: 4, VAE: some.pt, Hashes: {"vae": "63aeecb90f", "model": "1f"}, Note: "a, \\"b\\": c\\nd"'
    info = infotext.parse(text)
    assert info.other == {"VAE": "some.pt", "Hashes": '{"vae": "63aeecb90f", "model": "1f"}', "Note": 'a, "b": c\nd'}
    assert infotext.format(info) == text


def test_a_text_without_parameters_is_a_prompt() -> None:
    assert infotext.parse("a cat, hat: red\nNegative prompt: dog\nbird\n") == Infotext("a cat, hat: red", "dog\nbird")
    assert infotext.parse("") == Infotext()
    assert infotext.parse("(sky blue:1.2), (red dog:1.1), (cat:1.3)").prompt.startswith("(sky")


def test_line_ends_of_any_system_are_understood() -> None:
    info = infotext.parse("one\r\ntwo \r\nNegative prompt: three\r\nSteps: 4, Seed: 1, CFG scale: 2")
    assert (info.prompt, info.negative_prompt, info.steps) == ("one\ntwo", "three", 4)


@pytest.mark.parametrize(
    "field",
    ["Steps: many", "CFG scale: nan", "Seed: 1.5", "Size: large", "Size: 1x2x3", "RNG: dice", "Denoising strength: ",
     "layerdiffusion_enabled: perhaps", "Clip skip: " + "9" * 5000],
)  # fmt: skip
def test_a_field_that_cannot_be_read_is_an_error_that_names_it(field: str) -> None:
    with pytest.raises(InvalidRequest, match=field.split(":")[0]) as error:
        infotext.parse(f"cat\n{field}, Sampler: Euler, Model: base")
    assert len(str(error.value)) < 200


def test_a_label_that_would_break_the_line_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="label"):
        infotext.format(Infotext(steps=1, other={"a: b, c": "d"}))


def test_a_very_long_last_line_is_read_at_once() -> None:
    started = time.process_time()
    for line in ("word " * 40_000, " " * 200_000 + "x", 'aa: "' * 40_000, "aa: {" * 40_000, 'aa: \\",' * 40_000):
        infotext.parse("cat\nx " + line)
    assert time.process_time() - started < 10


texts = st.text(st.characters(codec="utf-8"), max_size=40)
numbers = st.floats(allow_nan=False, allow_infinity=False)


def prompt_texts() -> st.SearchStrategy[str]:
    """Prompts as the format can hold them: no white space at a line's ends, no mark of the negative prompt."""
    lines = st.lists(texts.map(str.strip).filter(lambda line: not line.startswith("Negative prompt:")), max_size=3)
    return lines.map(lambda parts: "\n".join(part.replace("\r", " ").strip() for part in parts).strip()).filter(
        lambda text: all(line == line.strip() for line in text.split("\n"))
    )


@given(
    prompt_texts(), prompt_texts(), st.integers(0, 10**6), st.sampled_from(sorted(SAMPLERS)),
    st.sampled_from([None, *SCHEDULES]), numbers, st.integers(0, 2**32), st.tuples(st.integers(1), st.integers(1)),
    st.sampled_from(["nvidia", "cpu", None]), st.booleans(), texts,
    st.dictionaries(st.from_regex(r"[A-Za-z][A-Za-z0-9 /-]{0,8}[a-z0-9]", fullmatch=True), texts, max_size=4),
)  # fmt: skip
def test_what_is_written_is_read_back_as_it_was(
    prompt, negative, steps, sampler, schedule, guidance, seed, size, noise, flag, model, other
):
    known = {"Steps", "Sampler", "Seed", "Size", "Model", "RNG", "Version", "Emphasis"}
    info = Infotext(
        prompt=prompt, negative_prompt=negative, steps=steps, sampler=sampler, schedule=schedule,
        guidance_scale=guidance, seed=seed, size=size, noise_source=noise, layer_enabled=flag, model=model,
        other={label: value for label, value in other.items() if label not in known},
    )  # fmt: skip
    text = infotext.format(info)
    assert infotext.parse(text) == info
    assert infotext.format(infotext.parse(text)) == text


@given(st.text(max_size=200) | st.lists(st.sampled_from(SANITY_CHECKS[7].split(", ")), max_size=30).map(", ".join))
def test_any_text_is_read_or_refused_with_our_own_error(text: str) -> None:
    for whole in (text, f"Steps: 1, {text}"):
        try:
            info = infotext.parse(whole)
        except InvalidRequest:
            continue
        again = infotext.format(info)
        if info.steps is not None:  # without them A1111 and we may take a short line for a prompt
            assert infotext.parse(again) == info
