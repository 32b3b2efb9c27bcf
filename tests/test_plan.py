"""A plan leaves nothing open, and says what is missing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerdiffuse_mcp.choices import SAMPLERS, SCHEDULES
from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.methods import METHODS, ROUTES, Task, families_for, task_inputs
from layerdiffuse_mcp.plan import fit, resolve, seeds
from layerdiffuse_mcp.recipes import recipe_of, request_from
from layerdiffuse_mcp.requests import MAX_SEED, MAX_SIZE, MIN_SIZE, GenerateRequest


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
    plan = resolve(
        request(task=Task.BACKGROUND_FROM_FOREGROUND, inputs={"foreground": tmp_path}), "sdxl", 1024, (800, 400)
    )
    assert [stage.method for stage in plan.stages] == ["layer_xl_fg2ble", "layer_xl_fgble2bg"]
    assert [stage.sampler for stage in plan.stages] == ["DPM++ 2M SDE", "Euler a"]
    assert [stage.stop_at for stage in plan.stages] == [1.0, 0.5]
    assert (plan.width, plan.height) == (1472, 704)
    assert 0 <= plan.seed <= MAX_SEED


def test_what_a_request_says_holds_for_every_stage(tmp_path) -> None:
    plan = resolve(
        request(
            task=Task.FOREGROUND_FROM_BACKGROUND, inputs={"background": tmp_path}, sampler="UniPC", steps=7, stop_at=0.8
        ),
        "sdxl",
        1024,
    )
    assert {(stage.sampler, stage.schedule, stage.steps, stage.stop_at) for stage in plan.stages} == {
        ("UniPC", "Automatic", 7, 0.8)
    }


def test_what_a_base_advises_wins_over_the_method_and_yields_to_the_request() -> None:
    base = {"guidance_scale": 4.0, "steps": 12}
    stage = resolve(request(steps=8), "sd15", 128, advice=base).stages[0]
    assert (stage.guidance_scale, stage.steps, stage.sampler) == (4.0, 8, "DPM++ 2M")


def test_a_plan_is_its_own_plan() -> None:
    plan = resolve(request(seed=3, steps=5), "sd15", 512)
    assert resolve(plan, "sd15", 512) == plan


def test_a_recipe_leads_back_to_the_plan() -> None:
    plan = resolve(request(seed=3, negative_prompt="bad"), "sd15", 512)
    again = request_from(recipe_of(plan, weights={"model": "15012c538f"}, device="cpu", dtype="float32"))
    assert again.drawn_with == {"model": "15012c538f"}
    assert again.model_copy(update={"drawn_with": None}) == plan


def test_results_take_as_many_seeds_as_they_have_frames() -> None:
    plan = resolve(request(task=Task.LAYERS, seed=10, count=3), "sd15", 512)
    assert seeds(plan) == [10, 13, 16]


def test_a_layer_that_the_family_cannot_draw_names_the_family_that_can() -> None:
    with pytest.raises(InvalidRequest, match="family sd15"):
        resolve(request(task=Task.LAYERS), "sdxl", 1024)


def test_a_missing_picture_is_named(tmp_path) -> None:
    with pytest.raises(InvalidRequest, match="no blended is given"):
        resolve(request(task=Task.EXTRACT_FOREGROUND, inputs={"background": tmp_path}), "sdxl", 1024)


@given(st.tuples(st.integers(1, 9000), st.integers(1, 9000)), st.sampled_from([128, 512, 1024]))
def test_a_fitted_size_is_allowed_and_in_steps_of_64(size, native) -> None:
    fitted = fit(size, native)
    assert all(MIN_SIZE <= side <= MAX_SIZE and side % 64 == 0 for side in fitted)
