"""The program of a picture worker: one task after another, within a bound of memory.

    python -m layerdiffuse_mcp.backends.pictures_worker BYTES IDLE_SECONDS

Tasks come on standard input; progress, results and errors go to standard output, each as two lengths, a pickle and the
bytes of the result's file. It ends as soon as its server does, whatever it is doing, and after `IDLE_SECONDS` without
a task.
"""

import logging
import os
import pickle
import queue
import signal
import struct
import sys
import threading
import time
from dataclasses import replace
from typing import Any, BinaryIO

from layerdiffuse_mcp.errors import LayerDiffuseError, OutOfMemory
from layerdiffuse_mcp.images.tasks import PictureResult, PictureTask
from layerdiffuse_mcp.outcome import Progress

LENGTHS = struct.Struct(">QQ")
"""Of a message: its pickle's, and that of the bytes after it."""
QUIET = 0.1
"""Seconds between reports that differ in their fraction alone."""
OVER_LIMIT = 75
"""Exit code of a worker that went over its memory where the system sets no bound."""
WATCH = 0.05
"""Seconds between looks at the memory there."""
THREADS = 2

logger = logging.getLogger(__name__)

Answer = Progress | LayerDiffuseError | PictureResult


def main(memory: int, idle: float) -> None:
    """Serve tasks until the server is gone.

    Args:
        memory: bytes that this process may take.
        idle: seconds without a task after which it ends.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the server decides
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints is no message
    tasks: queue.SimpleQueue[PictureTask[Any]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin.buffer, tasks), daemon=True, name="listen").start()
    bound_memory(memory)
    try:
        while True:
            task = tasks.get(timeout=idle)
            send(output, _done(task, output, memory))
    except (queue.Empty, OSError):
        os._exit(0)


def send(output: BinaryIO, answer: Answer) -> None:
    """Write one message."""
    data = b""
    if isinstance(answer, PictureResult):
        answer, data = replace(answer, data=b""), answer.data
    header = pickle.dumps(answer)
    output.write(LENGTHS.pack(len(header), len(data)))
    output.write(header)
    output.write(data)
    output.flush()


def bound_memory(size: int) -> None:
    """Let this process allocate `size` bytes and no more; where the system cannot, have it end when it takes more."""
    if sys.platform == "linux":  # other systems accept such a limit and do not heed it
        import resource

        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        bound = size if hard == resource.RLIM_INFINITY else min(size, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (bound, hard))
    else:
        threading.Thread(target=end_beyond, args=(size,), daemon=True, name="watch memory").start()


def end_beyond(size: int) -> None:
    """End this process as soon as it takes more than `size` bytes of memory."""
    import psutil

    process = psutil.Process()
    while process.memory_info().rss <= size:
        time.sleep(WATCH)
    os._exit(OVER_LIMIT)


def out_of_memory(size: int) -> OutOfMemory:
    """The error for work that found too little of it."""
    return OutOfMemory(
        f"This picture work needs more than the {size / 1e9:.3g} GB of memory that it may take. "
        "Use smaller pictures, a smaller canvas or another format."
    )


def _done(task: PictureTask[Any], output: BinaryIO, memory: int) -> PictureResult | LayerDiffuseError:
    last = Progress(fraction=0.0, message="")
    heard = 0.0

    def report(progress: Progress) -> None:
        nonlocal last, heard
        now = time.monotonic()
        if progress.message != last.message or (progress.fraction > last.fraction and now - heard >= QUIET):
            last, heard = progress, now
            send(output, progress)

    try:
        import cv2

        from layerdiffuse_mcp.images.work import run

        cv2.setNumThreads(THREADS)
    except (ImportError, MemoryError) as error:
        return LayerDiffuseError(f"Picture work cannot start ({type(error).__name__}: {error}).")
    try:
        return run(task, report)
    except LayerDiffuseError as error:
        return type(error)(str(error))
    except MemoryError:
        return out_of_memory(memory)
    except Exception as error:  # a bug, ours or a library's: the task fails, the worker lives
        if isinstance(error, cv2.error) and error.code == cv2.Error.StsNoMem:
            return out_of_memory(memory)
        logger.exception("picture work failed unexpectedly")
        return LayerDiffuseError(f"The picture work failed unexpectedly ({type(error).__name__}: {str(error)[:200]}).")


def _listen(source: BinaryIO, tasks: "queue.SimpleQueue[PictureTask[Any]]") -> None:
    """Take tasks from the server; its end is this process's, in the middle of a task too."""
    try:
        while True:
            tasks.put(pickle.load(source))
    except (EOFError, OSError):
        os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
