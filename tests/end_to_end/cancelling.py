"""A call that is cancelled in the middle of a drawing.

status, heard = await cancelled_midway(client, "generate_transparent", {"prompt": "an apple", ...})
"""

from typing import Any

import anyio
from mcp import Client

from tests.results import facts_of


async def cancelled_midway(client: Client, tool: str, arguments: dict[str, Any]) -> tuple[str, list[float]]:
    """Cancel a call of many steps after its first; what its job has become, and the progress that was heard of it."""
    heard: list[float] = []
    started = anyio.Event()

    async def hear(progress: float, _total: float | None, message: str | None) -> None:
        heard.append(progress)
        step = (message or "").removeprefix("denoising ").partition("/")[0]
        if step.isdecimal() and int(step) > 1:
            started.set()

    with anyio.fail_after(120):
        async with anyio.create_task_group() as tasks:

            async def call() -> None:
                await client.call_tool(tool, arguments, progress_callback=hear)

            tasks.start_soon(call)
            await started.wait()
            tasks.cancel_scope.cancel()
    [newest] = facts_of(await client.call_tool("list_jobs", {"limit": 1}))["jobs"]
    asked = {"job_ids": [newest["job_id"]], "wait_seconds": 600}
    [stopped] = facts_of(await client.call_tool("get_job", asked))["jobs"]
    return stopped["status"], heard
