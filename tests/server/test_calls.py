"""Calls that take long: progress, a handle in time, cancellation; in both protocol eras."""

import itertools
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import anyio
import pytest
from mcp import Client
from mcp_types import CallToolResult

from tests.results import facts_of, text_of

Connect = Callable[..., AbstractAsyncContextManager[Client]]

pytestmark = pytest.mark.anyio


async def draw(client: Client, prompt: str, **output: Any) -> CallToolResult:
    given = {"prompt": prompt, "output": {"preview": False, **output}}
    return await client.call_tool("generate_transparent", given)


async def test_a_call_returns_the_finished_job(client: Client):
    result = await draw(client, "steps 2")
    assert facts_of(result)["status"] == "done"
    assert "generate_transparent is done" in text_of(result)


async def test_progress_rises_strictly_and_says_what_is_done(client: Client):
    heard: list[tuple[float, float | None, str | None]] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        heard.append((progress, total, message))

    await client.call_tool("generate_transparent", {"prompt": "steps 5"}, progress_callback=hear)
    values = [progress for progress, _, _ in heard]
    assert len(values) >= 4
    assert all(earlier < later for earlier, later in itertools.pairwise(values))
    assert all(total == 100 and progress <= 100 for progress, total, _ in heard)
    assert "step 3/5" in [message for _, _, message in heard]


async def test_a_wait_that_expires_hands_back_a_job_to_wait_for(client: Client):
    await draw(client, "steps 1")
    handle = await draw(client, "steps 40", wait_seconds=0.2)
    facts = facts_of(handle)
    assert facts["status"] == "running"
    assert 0 <= facts["progress"] < 1
    assert f"get_job with job_ids=['{facts['job_id']}']" in text_of(handle)
    finished = facts_of(await client.call_tool("get_job", {"job_ids": [facts["job_id"]]}))["jobs"][0]
    assert (finished["status"], finished["job_id"]) == ("done", facts["job_id"])


async def test_waiting_for_nothing_returns_at_once(connect: Connect):
    async with connect() as client:
        with anyio.fail_after(60):
            assert facts_of(await draw(client, "steps 100000", wait_seconds=0))["status"] in ("queued", "running")


async def test_other_tools_answer_while_a_job_runs(connect: Connect):
    async with connect() as client:
        await draw(client, "steps 1")
        handle = facts_of(await draw(client, "steps 100000", wait_seconds=0.1))
        with anyio.fail_after(60):
            status = facts_of(await client.call_tool("server_status", {}))
        assert (status["worker"], status["running"]) == ("busy", [handle["job_id"]])


async def test_a_call_that_its_client_cancels_stops_the_job(client: Client):
    await draw(client, "steps 1")
    with anyio.move_on_after(0.3):
        await draw(client, "steps 100000")
    with anyio.fail_after(60):
        while True:
            newest = facts_of(await client.call_tool("list_jobs", {"limit": 1}))["jobs"][0]
            if newest["status"] == "cancelled":
                break
            await anyio.sleep(0.05)
    assert facts_of(await draw(client, "steps 1"))["status"] == "done"


async def test_a_cancelled_wait_for_a_job_leaves_the_job_alone(client: Client):
    handle = facts_of(await draw(client, "steps 30", wait_seconds=0))
    with anyio.move_on_after(0.1):
        await client.call_tool("get_job", {"job_ids": [handle["job_id"]]})
    finished = facts_of(await client.call_tool("get_job", {"job_ids": [handle["job_id"]]}))
    assert finished["jobs"][0]["status"] == "done"


async def test_cancel_job_stops_it_and_the_waiting_call_says_so(client: Client):
    await draw(client, "steps 1")
    async with anyio.create_task_group() as tasks:
        seen: list[CallToolResult] = []

        async def wait_for_it() -> None:
            seen.append(await draw(client, "steps 100000"))

        tasks.start_soon(wait_for_it)
        with anyio.fail_after(60):
            while not (jobs := facts_of(await client.call_tool("list_jobs", {"status": "running"}))["jobs"]):
                await anyio.sleep(0.02)
        running = jobs[0]
        stopped = facts_of(await client.call_tool("cancel_job", {"job_id": running["job_id"]}))
        assert stopped["status"] == "cancelling"
    assert seen[0].is_error
    assert "was cancelled" in text_of(seen[0])
    again = await client.call_tool("get_job", {"job_ids": [running["job_id"]]})
    assert facts_of(again)["jobs"][0]["status"] in ("cancelling", "cancelled")


async def test_two_calls_at_once_both_end(client: Client):
    done: list[str] = []

    async def call(prompt: str) -> None:
        done.append(facts_of(await draw(client, prompt))["status"])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call, "steps 5")
        tasks.start_soon(call, "steps 6")
    assert done == ["done", "done"]


async def test_a_killed_worker_is_an_error_and_the_next_call_works(client: Client):
    failed = await draw(client, "killed")
    assert failed.is_error
    assert "SIGKILL" in text_of(failed)
    assert facts_of(await draw(client, "steps 1"))["status"] == "done"


async def test_an_error_of_the_engine_is_told_as_it_is(client: Client):
    failed = await draw(client, "refused")
    assert failed.is_error
    assert text_of(failed) == "Too large for this device: ask for less."
    listed = facts_of(await client.call_tool("list_jobs", {"status": "failed"}))["jobs"][0]
    again = facts_of(await client.call_tool("get_job", {"job_ids": [listed["job_id"]]}))
    assert again["jobs"][0]["error"] == text_of(failed)


async def test_a_list_of_jobs_in_a_state_that_none_has_says_how_many_there_are_in_others(connect: Connect):
    async with connect() as client:
        assert text_of(await client.call_tool("list_jobs", {"status": "running"})) == "No jobs yet."
        await draw(client, "steps 1")
        listed = await client.call_tool("list_jobs", {"status": "running"})
        assert text_of(listed) == "No running jobs; 1 in other states."


async def test_a_full_queue_is_an_error_that_says_what_to_do(connect: Connect):
    async with connect(queue_size=1) as client:
        await draw(client, "steps 100000", wait_seconds=0.1)
        await draw(client, "steps 1", wait_seconds=0)
        refused = await draw(client, "steps 1", wait_seconds=0)
        assert refused.is_error
        assert "cancel_job" in text_of(refused)


async def test_the_worker_starts_by_itself_after_the_first_answer(connect: Connect):
    async with connect(warm_up=True) as client:
        await client.list_tools()
        with anyio.fail_after(60):
            while facts_of(await client.call_tool("server_status", {}))["worker"] != "ready":
                await anyio.sleep(0.05)


async def test_without_warm_up_no_worker_starts_before_it_is_needed(connect: Connect):
    async with connect(warm_up=False) as client:
        await client.list_tools()
        assert facts_of(await client.call_tool("server_status", {}))["worker"] == "stopped"


async def test_a_call_with_the_key_of_an_earlier_one_gets_its_job(connect: Connect):
    async with connect() as client:
        first, again, other = [
            facts_of(await draw(client, "steps 1", key=key, wait_seconds=60)) for key in ("mine", "mine", "other")
        ]
        assert first["job_id"] == again["job_id"] != other["job_id"]
        assert facts_of(await client.call_tool("list_jobs", {}))["total"] == 2


async def test_a_key_of_another_request_is_refused(connect: Connect):
    async with connect() as client:
        first = await draw(client, "steps 1", key="mine", wait_seconds=60)
        refused = await draw(client, "steps 2", key="mine", wait_seconds=60)
        assert refused.is_error
        assert f"output.key: 'mine' stands for {facts_of(first)['job_id']}" in text_of(refused)
