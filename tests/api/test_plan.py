"""A plan leaves nothing open, and says what is missing."""

import json
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerdiffuse_mcp.api.choices import SAMPLERS, SCHEDULES
from layerdiffuse_mcp.api.fields import MAX_SEED, MAX_SIZE, MIN_DRAWN
from layerdiffuse_mcp.api.plan import (
    DecodePlan,
    EncodePlan,
    GivenPicture,
    GroupPlan,
    PlannedLora,
    PreparePlan,
    any_task,
    batch_key,
    seeds,
)
from layerdiffuse_mcp.api.requests import GenerateRequest
from layerdiffuse_mcp.api.sizes import fit
from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.families.registry import METHODS, ROUTES, families_for, task_inputs
from layerdiffuse_mcp.families.spec import Task
from tests.tasks import drawing, plan_of


def request(**fields) -> GenerateRequest:
    return GenerateRequest(**({"prompt": "an apple"} | fields))


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.id)
def test_the_advice_of_every_method_names_rows_of_the_tables(method) -> None:
    assert method.advice.sampler in SAMPLERS
    assert method.advice.schedule in SCHEDULES


@pytest.mark.parametrize(("task", "family"), ROUTES, ids=str)
def test_a_route_has_stages_of_its_family_that_feed_each_other(task, family) -> None:
    route = [METHODS[method] for method in ROUTES[task, family]]
    assert all(method.family == family for method in route)
    known = set(task_inputs(task, family))
    for method in route:
        assert known.issuperset(method.inputs)
        known.update(method.outputs)


@pytest.mark.parametrize("task", Task)
def test_every_task_can_be_done_by_some_family(task) -> None:
    assert families_for(task)


def test_what_is_left_open_is_decided_by_the_methods_advice(tmp_path) -> None:
    asked = request(task=Task.BACKGROUND_FROM_FOREGROUND, inputs={"foreground": tmp_path})
    plan = plan_of(asked, "sdxl", 1024, picture_size=(800, 400))
    assert [stage.method for stage in plan.stages] == ["layer_xl_fg2ble", "layer_xl_fgble2bg"]
    assert [stage.sampler for stage in plan.stages] == ["DPM++ 2M SDE", "Euler a"]
    assert [stage.stop_at for stage in plan.stages] == [1.0, 0.5]
    assert (plan.width, plan.height) == (1472, 704)
    assert 0 <= plan.seed <= MAX_SEED


def test_what_a_request_says_holds_for_every_stage(tmp_path) -> None:
    plan = plan_of(
        request(
            task=Task.FOREGROUND_FROM_BACKGROUND, inputs={"background": tmp_path}, sampler="UniPC", steps=7, stop_at=0.8
        ),
        "sdxl",
        1024,
    )
    assert {(stage.sampler, stage.schedule, stage.steps, stage.stop_at) for stage in plan.stages} == {
        ("UniPC", "Automatic", 7, 0.8)
    }


def test_advice_is_layered_method_then_base_then_lora_and_the_request_above_all() -> None:
    base, lora = {"guidance_scale": 4.0, "steps": 12, "sampler": "LCM"}, {"guidance_scale": 1.5, "steps": 6}
    stage = plan_of(request(steps=8), advice=[base, lora]).stages[0]
    assert (stage.steps, stage.guidance_scale, stage.sampler, stage.schedule) == (8, 1.5, "LCM", "Karras")


TASKS = {
    "draw": drawing("a cup <lora:spice:0.8>", seed=1, notes=("so it is",), drawn_with={"model": None}),
    "draw from a picture": drawing("a cup", image=Path("cup.png"), mask=Path("mask.png")),
    "group": GroupPlan(plans=(drawing("a cup", seed=1), drawing("a jug", count=2))),
    "decode": DecodePlan(model="pocket", latent=GivenPicture(name="a.safetensors", sha256="ab" * 32)),
    "encode": EncodePlan(model="pocket", image=GivenPicture(name="a.png", sha256="ab" * 32, bytes=3)),
    "prepare": PreparePlan(model="pocket", methods=("layer_sd15_joint",)),
}


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_a_task_travels_as_a_pickle_and_as_json(task) -> None:
    assert pickle.loads(pickle.dumps(task)) == task
    assert any_task(json.loads(task.model_dump_json())) == task


def test_plans_share_a_batch_if_they_differ_in_no_more_than_words_and_seeds() -> None:
    cup = drawing("a cup", image=Path("cup.png"))
    assert batch_key(cup) == batch_key(drawing("a jug", image=Path("cup.png"), seed=3, count=2, save_latent=True))
    other = cup.model_copy(update={"image": GivenPicture(name="cup.png", sha256="cd" * 32, bytes=7)})
    lora = cup.model_copy(update={"loras": (PlannedLora(name="spice", strength=1, text_strength=1),)})
    keys = {batch_key(plan) for plan in (cup, other, lora, drawing("a cup", image=Path("cup.png"), steps=3))}
    assert len(keys) == 4
    assert batch_key(TASKS["encode"]) is None


def test_a_layer_weight_that_would_change_nothing_is_refused_with_what_acts() -> None:
    with pytest.raises(InvalidRequest, match=r"layer_weight would change nothing: SD 1\.5.*stop_at, strength"):
        plan_of(request(layer_weight=0.5), "sd15")
    assert plan_of(request(layer_weight=0.5), "sdxl").stages[0].layer_weight == 0.5
    assert plan_of(request(layer_prompts={}, strength=0.6), "sd15").stages[0].layer_weight == 1.0


def test_a_picture_too_many_is_named(tmp_path) -> None:
    with pytest.raises(InvalidRequest, match="takes no blended picture"):
        plan_of(request(inputs={"blended": tmp_path}))


def test_seeds_that_pass_the_largest_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="smaller seed"):
        plan_of(request(task=Task.LAYERS, seed=MAX_SEED - 2, count=2))


def test_results_take_as_many_seeds_as_they_have_frames() -> None:
    plan = plan_of(request(task=Task.LAYERS, seed=10, count=3), "sd15", 512)
    assert seeds(plan) == [10, 13, 16]


def test_a_layer_that_the_family_cannot_draw_names_the_family_that_can() -> None:
    with pytest.raises(InvalidRequest, match="family sd15"):
        plan_of(request(task=Task.LAYERS), "sdxl", 1024)


def test_a_missing_picture_is_named(tmp_path) -> None:
    with pytest.raises(InvalidRequest, match="no blended is given"):
        plan_of(request(task=Task.EXTRACT_FOREGROUND, inputs={"background": tmp_path}), "sdxl", 1024)


@given(st.tuples(st.integers(1, 9000), st.integers(1, 9000)), st.sampled_from([128, 512, 1024]))
def test_a_fitted_size_is_allowed_and_in_steps_of_64(size, native) -> None:
    fitted = fit(size, native)
    assert all(MIN_DRAWN <= side <= MAX_SIZE and side % 64 == 0 for side in fitted)


def test_a_prompt_for_a_layer_that_is_not_drawn_is_refused_with_those_that_are(tmp_path) -> None:
    own = {"foreground": "a cat", "blended": "a cat on grass", "background": "grass"}
    with pytest.raises(InvalidRequest, match=r"transparent draws foreground, and no background and no blended: leave"):
        plan_of(request(layer_prompts=own))
    assert plan_of(request(task=Task.LAYERS, layer_prompts=own)).layer_prompts == own
    behind = {"task": Task.BACKGROUND_FROM_FOREGROUND, "inputs": {"foreground": tmp_path}}
    with pytest.raises(InvalidRequest, match="draws background and blended, and no foreground: leave out that prompt"):
        plan_of(request(layer_prompts={"foreground": "a cat"}, **behind), "sdxl", 1024)


def test_each_layer_of_advice_yields_to_the_next() -> None:
    rising = [{"steps": 30, "guidance_scale": 3.0, "stop_at": 0.9}, {"steps": 31, "guidance_scale": 2.0}, {"steps": 32}]
    for number, steps in enumerate([METHODS["layer_sd15_transparent_attn"].advice.steps, 30, 31, 32]):
        assert plan_of(request(), advice=rising[:number]).stages[0].steps == steps
        assert plan_of(request(steps=5), advice=rising[:number]).stages[0].steps == 5
    stage = plan_of(request(), advice=rising).stages[0]
    assert (stage.stop_at, stage.guidance_scale, stage.sampler) == (0.9, 2.0, "DPM++ 2M")
