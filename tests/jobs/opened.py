"""A queue over a worker that rehearses, and how tests submit to it."""

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.to_thread

from layerdiffuse_mcp.backends.local import LocalBackend
from layerdiffuse_mcp.jobs.job import Job
from layerdiffuse_mcp.jobs.queue import Jobs
from layerdiffuse_mcp.settings import Settings
from tests.tasks import planned


@asynccontextmanager
async def open_jobs(settings: Settings, engine: str, heartbeat: float = 3.0) -> AsyncIterator[Jobs]:
    async with Jobs(LocalBackend(settings, engine), settings, heartbeat) as jobs:
        yield jobs


def ask(jobs: Jobs, prompt: str, client: str = "", **fields: Any) -> Job:
    return jobs.submit(planned(prompt, **fields), client=client)


def ask_all(jobs: Jobs, *prompts: str, **fields: Any) -> list[Job]:
    return [jobs.submit(planned(p, seed=n, **fields)) for n, p in enumerate(prompts)]


async def reach(event: threading.Event) -> None:
    assert await anyio.to_thread.run_sync(event.wait, 30)
