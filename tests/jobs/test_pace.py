"""How long a drawing takes is learnt of those before it, and said before its first step."""

import json
from pathlib import Path

import platformdirs
import pytest

from layerdiffuse_mcp.api.outcome import Outcome, Progress, Timings
from layerdiffuse_mcp.api.plan import GroupPlan, Planned, PreparePlan
from layerdiffuse_mcp.jobs.job import Batch, Job, State
from layerdiffuse_mcp.jobs.pace import FILE, Paces, likely_cpu, work_of
from layerdiffuse_mcp.settings import Settings
from tests.tasks import drawing


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return platformdirs.user_state_path("layerdiffuse") / FILE


def took(seconds: float, device: str = "cpu") -> Outcome:
    return Outcome(model="a-base", device=device, timings=Timings(draw=seconds, denoise=seconds, total=seconds + 3))


def test_work_is_counted_in_the_pixels_that_are_drawn():
    one = drawing("x", width=512, height=512, steps=10)
    steps, once = work_of(one)
    assert (steps, once) == pytest.approx((512 * 512 * 10 / 1e6, 512 * 512 / 1e6))
    assert work_of(drawing("x", width=512, height=512, steps=10, count=3)) == pytest.approx((3 * steps, 3 * once))
    assert work_of(drawing("x", width=512, height=512, steps=10, sampler="Heun")) == pytest.approx((2 * steps, once))
    assert work_of(drawing("x AND y AND z", width=512, height=512, steps=10)) == pytest.approx((2 * steps, once))
    fitted = drawing("x", width=2048, height=2048, steps=10)
    assert fitted.drawn == (512, 512)
    assert work_of(fitted) == work_of(one)


def test_a_pace_is_learnt_by_device_and_model_and_outlasts_the_server():
    task, paces = drawing("x", steps=10), Paces()
    assert paces.seconds([task]) is None
    paces.learn(task, took(10))
    assert Paces().seconds([task, task]) == pytest.approx(20)
    paces.learn(task, took(20))
    assert Paces().seconds([task]) == pytest.approx(16.25)  # the one before counts 0.6
    paces.learn(task, took(1, "a card"))
    assert Paces().seconds([task]) == pytest.approx(1)  # where it was drawn last
    assert Paces().seconds([task], "cpu") == pytest.approx(16.25)
    assert Paces().seconds([task], "another card") is None
    assert Paces().seconds([drawing("x", model="other")]) is None


def test_a_group_teaches_the_pace_of_all_its_drawings():
    one = drawing("x", steps=10)
    paces = Paces()
    paces.learn(GroupPlan(plans=(one, one)), took(10).model_copy(update={"parts": (Outcome(), Outcome())}))
    assert paces.seconds([one]) == pytest.approx(5)


def test_what_is_done_once_is_not_charged_to_the_steps():
    """Of a machine that takes 0.1 s a step and 1.5 s for the rest."""
    few, paces = drawing("x", steps=1), Paces()
    paces.learn(few, Outcome(model="a-base", device="cpu", timings=Timings(draw=1.6, denoise=0.1)))
    assert paces.seconds([few]) == pytest.approx(1.6)
    assert paces.seconds([drawing("x", steps=100)]) == pytest.approx(11.5)
    assert paces.seconds([drawing("x", steps=100, count=2)]) == pytest.approx(23)
    paces.learn(drawing("x", steps=99), Outcome(model="a-base", device="cpu", timings=Timings(draw=6, denoise=4.5)))
    assert paces.seconds([drawing("x", steps=100)]) == pytest.approx(6.1, abs=0.05)  # many steps tell more than one


@pytest.mark.parametrize("content", [
    b'{"cpu": {"a-base": 5}}', b"", b"[]", b"{",
    b'{"cpu": 5}', b'{"cpu": {"a-base": "x"}}', b'{"cpu": {"a-base": [-1, 1, 0, 1]}}', b"[" * 100_000, b"\xff",
])  # fmt: skip
def test_a_file_that_is_damaged_is_nothing_known(state: Path, content: bytes):
    state.parent.mkdir(parents=True)
    state.write_bytes(content)
    paces = Paces()
    assert paces.seconds([drawing("x")]) is None
    paces.learn(drawing("x"), took(10))
    assert json.loads(state.read_text())["cpu"]["a-base"][0] > 0


def test_what_draws_nothing_teaches_nothing(state: Path):
    paces = Paces()
    paces.learn(PreparePlan(model="a-base"), took(10))
    paces.learn(drawing("x"), Outcome(model="a-base", device="cpu"))
    assert not state.exists()
    assert paces.seconds([PreparePlan(model="a-base")]) is None


@pytest.mark.anyio
async def test_a_job_says_how_long_it_takes_before_its_first_step():
    job = Job("draw", Planned((drawing("x"),)))
    job.expected = 30.0
    assert job.seconds_left is None  # nobody knows how long others take that come first
    job.begin(Batch(0, job.parts))
    assert job.seconds_left == pytest.approx(30)
    job.report(Progress(fraction=0.5, message="denoising"))
    assert job.seconds_left is not None
    assert job.seconds_left < 1  # as fast as it has been
    job.end(State.DONE)
    assert job.seconds_left is None


def test_the_settings_say_first_what_is_a_processor(monkeypatch: pytest.MonkeyPatch):
    assert likely_cpu(Settings(device="cpu"))
    assert not likely_cpu(Settings(device="cuda"))
