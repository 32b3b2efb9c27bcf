"""Workers that the servers of one user share: found in the state folder, or started there.

    handle, connection = attach(settings, engine, place, number)     # then all is as with a worker of one's own

A worker listens on a socket (on Windows a named pipe) in a folder that is its user's alone, and both sides prove that
they can read the key that lies there. Its name says all that an engine depends on: only servers for which that is the
same meet at one. The process is no child of the server that starts it, and outlives it (see `shared_worker`).
"""

import hashlib
import os
import pickle
import re
import secrets
import socket
import stat
import subprocess
import sys
import time
from contextlib import suppress
from multiprocessing import AuthenticationError
from multiprocessing import connection as connections
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import platformdirs
import psutil
from filelock import FileLock

import layerdiffuse_mcp
from layerdiffuse_mcp.backends.messages import Hello
from layerdiffuse_mcp.backends.places import Place
from layerdiffuse_mcp.errors import WorkerDied
from layerdiffuse_mcp.families.registry import FAMILIES
from layerdiffuse_mcp.settings import Settings
from layerdiffuse_mcp.surroundings import working_directory
from layerdiffuse_mcp.wording import printable

PACKAGE = Path(layerdiffuse_mcp.__file__).parent
LINGER = 60.0
"""Seconds that a worker stays after its last server has gone."""
GRACE = 20.0
"""Seconds that the task of a server which has gone gets to reach its next step, while others wait."""
PATIENCE = 60.0
"""Seconds that one has to start listening, or to answer who knocks."""
OLD_LOG = 30 * 86_400
"""Seconds after which a log is removed when another is begun."""
SERVERS_OWN = (
    *("model", "output_dir", "read_dirs", "workers", "share_workers", "auto_download", "warm_up", "queue_size"),
    *(
        "queue_pixels",
        "wait_seconds",
        "group_jobs",
        "history",
        "resume_jobs",
        "tokens_file",
        "drain_seconds",
        "log_file",
    ),
    *("backend", "ray_address", "ray_cpus"),
)
"""Settings that no engine reads."""
ENVIRONMENT = re.compile(
    r"(CUDA_(?!HOME|PATH)|HIP_(?!PATH)|ROCR_|HSA_|OMP_|MKL_|KMP_|PYTORCH_|TORCH_|MALLOC_|THP_|HF_(?!TOKEN)|HUGGINGFACE_"
    r"|DIFFUSERS_|XDG_(CACHE|DATA)_HOME)"
)
"""Variables that engines and their libraries read. Clients differ in many others, as XDG_SESSION_ID."""
APART = "import subprocess, sys; subprocess.Popen(sys.argv[1:], start_new_session=True, creationflags={flags}, \
stdin=sys.stdin, stdout=sys.stdout, stderr=sys.stderr)"
"""A program that starts another and ends, so that this is nobody's child."""
WORKER = "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); \
from layerdiffuse_mcp.backends.shared_worker import main; main(*pickle.load(sys.stdin.buffer))"


class SharedProcess:
    """A worker that other servers use, too: a `process.Process` that is not this server's to wait for."""

    def __init__(self, hello: Hello, connection: "Connection[Any, Any]", log: Path) -> None:
        self.pid = hello.pid
        self.log = f"in {printable(log)}"
        self._created = hello.created
        self._connection = connection

    def kill(self) -> None:
        """End it, whoever uses it: it does not answer."""
        with suppress(psutil.Error):
            process = psutil.Process(self.pid)
            if abs(process.create_time() - self._created) < 2:  # in a container the number may be another's
                process.kill()
                return
        self.leave()

    def leave(self) -> None:
        """End the connection."""
        if sys.platform == "win32":
            self._connection.close()
        else:
            with suppress(OSError), socket.socket(fileno=os.dup(self._connection.fileno())) as end:
                end.shutdown(socket.SHUT_RDWR)  # `close` would not wake who reads from it

    def join(self, timeout: float | None = None) -> None:
        """Wait for nothing."""

    def is_alive(self) -> bool:
        """Whether it still has to be ended."""
        return False

    def death(self) -> WorkerDied:
        """What a job hears that it ran."""
        return WorkerDied(
            f"The worker process, which other servers use too, ended while it ran this job; its log is {self.log}. "
            "The next job gets a new worker."
        )


def attach(settings: Settings, engine: str, place: Place, number: int) -> "tuple[SharedProcess, Connection[Any, Any]]":
    """A worker for these settings at that place: the one that there is, else a new one.

    Raises:
        OSError: none can be shared, and why.
    """
    settings = engine_settings(settings, place)
    folder = private_folder()
    name = f"{pool_name(settings, engine, place)}-{number}"
    address = rf"\\.\pipe\layerdiffuse-{name}" if sys.platform == "win32" else str(folder / name)
    log = folder / f"{name}.log"
    with FileLock(folder / "lock", timeout=PATIENCE):
        key = _key(folder)
        found = _connected(address, key)
        if found is None:
            _start(log, (address, key, settings, engine, place.environment, LINGER, GRACE))
            found = _connected(address, key)
    if found is None:
        raise OSError(f"the one that was started has ended; its log is {printable(log)}")
    hello, connection = found
    return SharedProcess(hello, connection, log), connection


def engine_settings(settings: Settings, place: Place) -> Settings:
    """What an engine at that place reads of the settings, all else as if it was not set."""
    unset = {name: Settings.model_fields[name].default for name in SERVERS_OWN}
    shown = {"output_dir": settings.output} if settings.previews else {}
    return place.settings(settings).model_copy(update=unset | shown)


def private_folder() -> Path:
    """Where sockets, their key and logs lie.

    Raises:
        PermissionError: others can enter it.
    """
    folder = platformdirs.user_state_path("layerdiffuse") / "workers"
    folder.mkdir(0o700, parents=True, exist_ok=True)
    _check_private(folder, 0o700)
    return folder


def _key(folder: Path) -> bytes:
    """The secret of all servers and workers of this user."""
    path = folder / "key"
    if not os.path.exists(path):
        with NamedTemporaryFile(dir=folder, delete=False) as file:  # of mode 600
            file.write(secrets.token_bytes(32))
        os.replace(file.name, path)
    _check_private(path, 0o600)
    return path.read_bytes()


def _check_private(path: Path, mode: int) -> None:
    if sys.platform == "win32":
        return
    found = path.lstat()
    if found.st_uid != os.geteuid() or stat.S_ISLNK(found.st_mode) or stat.S_IMODE(found.st_mode) != mode:
        raise PermissionError(f"{printable(path)} has to be yours alone: remove it, and it is made anew")


def pool_name(settings: Settings, engine: str, place: Place) -> str:
    """A name for all that is the same for every server at a worker."""
    program = (
        layerdiffuse_mcp.__version__,
        max(file.stat().st_mtime_ns for file in PACKAGE.rglob("*.py")),
        *(str(PACKAGE), sys.executable, sys.prefix, os.path.expanduser("~"), engine, sorted(FAMILIES)),
    )
    variables = sorted(item for item in os.environ.items() if ENVIRONMENT.match(item[0]))
    said = repr((program, settings.model_dump_json(), place, variables))
    return hashlib.sha256(said.encode(errors="surrogateescape")).hexdigest()[:12]


def import_path() -> list[str]:
    """Where a worker finds modules: as this server does, without the project folder, which is no business of others."""
    project = {str(working_directory())} - {str(PACKAGE.parent)}
    return [entry for entry in sys.path if os.path.abspath(entry) not in project]


def _connected(address: str, key: bytes) -> "tuple[Hello, Connection[Any, Any]] | None":
    """What the worker at an address says, and the connection to it; None if nobody is there."""
    try:
        connection = connections.Client(address)
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    try:
        if not connection.poll(PATIENCE):
            raise TimeoutError("the one that is there does not answer")
        connections.answer_challenge(connection, key)
        connections.deliver_challenge(connection, key)
        return connection.recv(), connection
    except (EOFError, ConnectionError):  # it was about to end
        connection.close()
        return None
    except AuthenticationError as error:
        connection.close()
        raise PermissionError("the one that is there has another key") from error
    except BaseException:
        connection.close()
        raise


def _start(log: Path, given: tuple[object, ...]) -> None:
    """Start a worker, and return when it listens."""
    for other in log.parent.glob("*.log"):
        with suppress(OSError):
            if time.time() - other.stat().st_mtime > OLD_LOG:
                other.unlink()
    with suppress(FileNotFoundError):
        log.replace(log.with_suffix(".old.log"))
    flags = subprocess.DETACHED_PROCESS if sys.platform == "win32" else 0
    apart = (sys.executable, "-I", "-S", "-c", APART.format(flags=flags))
    with log.open("wb") as errors:
        try:
            started = subprocess.run(
                [*apart, sys.executable, "-c", WORKER, str(given[0])],
                input=pickle.dumps(import_path()) + pickle.dumps(given),
                stdout=subprocess.PIPE,  # at its end when the worker lets go of it, or has ended
                stderr=errors,
                cwd=log.parent,
                timeout=PATIENCE,
            )
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"none started within {PATIENCE:.0f} s; its log is {printable(log)}") from error
    if not started.stdout:
        raise OSError(f"the one that was started has ended; its log is {printable(log)}")
