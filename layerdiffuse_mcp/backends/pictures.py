"""The room for work on finished pictures: small processes beside the queue, bounded in number and memory.

    async with PictureRoom() as room:
        inspected = await room.run(InspectTask(path), report=print)

Whatever a picture does to the process that decodes it, the server goes on: work that needs too much memory fails, a
worker that dies is replaced, and a task that is cancelled ends at once, for its process is killed. A process takes half
a second to start, so that it is kept a while for the next task; it imports no torch.
"""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import time
from types import TracebackType

import anyio
from anyio.abc import Process

from layerdiffuse_mcp.api.outcome import Progress
from layerdiffuse_mcp.backends.backend import Report
from layerdiffuse_mcp.backends.pictures_worker import LENGTHS, OVER_LIMIT, Answer, out_of_memory
from layerdiffuse_mcp.errors import LayerDiffuseError, OutOfMemory, WorkerDied
from layerdiffuse_mcp.images.tasks import PictureTask, ResultT

WORKERS = 2
MEMORY = 2_000_000_000
"""Bytes that each process may take. On Linux it can allocate no more; elsewhere it ends soon after it takes more."""
IDLE = 60.0
"""Seconds for which a process is kept without work."""
EXIT_GRACE = 1.0
"""Seconds that a dying process gets to say how it ended."""
WAITING = Progress(fraction=0.0, message="waiting for other work on pictures")


def ignore(_: Progress) -> None:
    """A report that nobody reads."""


class PictureRoom:
    """Runs picture tasks, at most `workers` at once; further ones wait.

    Args:
        workers: how many processes there may be.
        memory: bytes that each may take.
        idle: seconds for which one is kept without work.
    """

    def __init__(self, workers: int = WORKERS, memory: int = MEMORY, idle: float = IDLE) -> None:
        self._places = anyio.CapacityLimiter(workers)
        self._memory = memory
        self._idle = idle
        self._spare: list[tuple[Process, float]] = []
        self._living: set[Process] = set()
        self._closed = False

    async def __aenter__(self) -> "PictureRoom":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def pids(self) -> list[int]:
        """The processes that live now."""
        return sorted(process.pid for process in self._living if process.returncode is None)

    async def run(self, task: PictureTask[ResultT], report: Report = ignore) -> ResultT:
        """Do a task in a process; whoever cancels this has the process killed.

        `report` hears how far the task is, in the caller's event loop.

        Raises:
            OutOfMemory: it needs more memory than a process may take.
            WorkerDied: its process ended, or none could be started.
            LayerDiffuseError: whatever the work raised.
        """
        report(WAITING)
        async with self._places:
            process = await self._process()
            answer: Answer | None = None
            try:
                answer = await self._answer(process, task, report)
            finally:
                if answer is None or isinstance(answer, OutOfMemory):
                    await self._end(process)
                else:
                    self._spare.append((process, time.monotonic()))
        if isinstance(answer, LayerDiffuseError):
            raise answer
        return answer  # pyright: ignore[reportReturnType] - the worker keeps to the task's type

    async def close(self) -> None:
        """End all processes, those at work too."""
        self._closed = True
        for process in list(self._living):
            await self._end(process)
        self._spare.clear()

    async def _process(self) -> Process:
        """One that waits for work, else a new one."""
        while self._spare:
            process, since = self._spare.pop()
            if process.returncode is None and time.monotonic() - since < self._idle / 2:
                return process
            await self._end(process)  # it has ended by itself, or is about to
        if self._closed:
            raise WorkerDied("The server is closing.")
        module = "layerdiffuse_mcp.backends.pictures_worker"
        command = [sys.executable, "-P", "-m", module, str(self._memory), str(self._idle)]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "OPENBLAS_NUM_THREADS": "1",  # each thread of it takes memory, and nothing here multiplies matrices
        }
        process = None
        with anyio.CancelScope(shield=True):  # nobody could end a process that was spawned and forgotten
            try:
                process = await anyio.open_process(command, stdin=subprocess.PIPE, stderr=None, env=environment)
            except OSError as error:  # no descriptors, no memory
                raise WorkerDied(
                    f"No process for work on pictures could be started ({error}). Close other programs, or try again "
                    "later."
                ) from error
        assert process is not None
        self._living.add(process)
        return process

    async def _answer(self, process: Process, task: PictureTask[ResultT], report: Report) -> Answer:
        """The result of a task, or the error that the work raised; progress is passed on."""
        assert process.stdin is not None
        try:
            await process.stdin.send(pickle.dumps(task))
            while True:
                header, data = LENGTHS.unpack(await _received(process, LENGTHS.size))
                answer: Answer = pickle.loads(await _received(process, header))
                if not isinstance(answer, Progress):
                    if data:
                        object.__setattr__(answer, "data", await _received(process, data))
                    return answer
                report(answer)
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            with anyio.move_on_after(EXIT_GRACE):
                await process.wait()
            raise self._cause_of_death(process.returncode) from None

    def _cause_of_death(self, code: int | None) -> LayerDiffuseError:
        if self._closed:
            return WorkerDied("The server is closing.")
        if code == OVER_LIMIT:
            return out_of_memory(self._memory)
        ended = f"ended with exit code {code}"
        if code is not None and code < 0:
            ended = f"was killed by {next((s.name for s in signal.Signals if s == -code), f'signal {-code}')}"
        return WorkerDied(
            f"The process that worked on the picture {ended}. The file may be damaged, or the system may have run out "
            "of memory: use another or a smaller picture or canvas. The next call gets a new process."
        )

    async def _end(self, process: Process) -> None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        with anyio.CancelScope(shield=True):
            await process.aclose()
        self._living.discard(process)


class Corner(PictureRoom):
    """A room for one of several clients that share it: it has one task at a time in there, so that no other waits long.

    Args:
        room: whose processes do the work; it is not closed with this.
    """

    def __init__(self, room: PictureRoom) -> None:
        super().__init__(workers=1)
        self._room = room

    @property
    def pids(self) -> list[int]:
        """The processes of the room."""
        return self._room.pids

    async def run(self, task: PictureTask[ResultT], report: Report = ignore) -> ResultT:
        """Do a task in the room once those that came before are done; see `PictureRoom.run`."""
        report(WAITING)
        async with self._places:
            return await self._room.run(task, report)


async def _received(process: Process, size: int) -> bytes:
    """The next `size` bytes that a process says."""
    assert process.stdout is not None
    data = bytearray()
    while len(data) < size:
        data += await process.stdout.receive(size - len(data))
    return bytes(data)
