"""Every setting of the server, the worker and the command line, in one place.

Each is read from `LAYERDIFFUSE_<NAME>` in the environment and may be overridden by a flag of
`layerdiffuse-mcp serve`; what is empty counts as not set. The object is frozen and pickles: it goes
to the worker as it is.
"""

import logging
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import platformdirs
from pydantic import BeforeValidator, Field, PrivateAttr, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from layerdiffuse_mcp.surroundings import working_directory
from layerdiffuse_mcp.wording import quoted

Device = Literal["auto", "cpu", "cuda", "mps"]
Dtype = Literal["auto", "fastest", "float32", "bfloat16", "float16"]
BackendName = Literal["local", "ray"]
Offload = Literal["auto", "none", "in_turn", "layers"]

PREFIX = "LAYERDIFFUSE_"
DAY = 86_400.0
SHARE = 0.8
"""Of a device's memory; what models may take unless it is set."""
UNREPLACED = re.compile(r"\$\{[^{}]*\}")
"""A variable that the client should have filled in, as `${HOME}`."""
OF_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")
"""How a path begins with a drive or the name of a machine."""

logger = logging.getLogger(__name__)


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return f"{PREFIX}{name.upper()}"


def _folder(value: object) -> object:
    """A folder or file as an absolute path, `~` expanded."""
    if not isinstance(value, str | Path):
        return value
    text = str(value)
    if "${" in text:
        raise ValueError(
            f"{quoted(text)} holds a variable that was not filled in. Write the folder itself, "
            "for example ~/Pictures: the program that starts this server has to replace ${...}, and did not"
        )
    if _is_foreign(text):
        raise ValueError(
            f"{quoted(text)} is a path of Windows, and this server does not run there. Give one that this system has: "
            "in WSL that of C:\\ is /mnt/c"
        )
    try:
        return Path(text).expanduser().absolute()
    except (RuntimeError, OSError) as error:  # no such user; or the working directory is gone
        raise ValueError(f"{quoted(text)} is no folder that can be found ({error}). Give an absolute path") from None


def _folders(value: object) -> object:
    """Folders joined by the path separator, or in a sequence."""
    parts = _separate(value) if isinstance(value, str) else value
    if not isinstance(parts, list | tuple):
        return parts
    return tuple(_folder(part) for part in cast("list[object]", parts) if part != "")


def _separate(text: str) -> list[str]:
    return [text] if _is_foreign(text) else text.split(os.pathsep)  # a drive's colon separates nothing


def _is_foreign(path: str) -> bool:
    """Whether it is a path of Windows, elsewhere."""
    return os.name != "nt" and OF_WINDOWS.match(path) is not None


def _is_project(folder: Path) -> bool:
    return folder not in (Path.home(), Path(folder.anchor))


def _own_output() -> Path:
    here = working_directory()
    if _is_project(here) and os.access(here, os.W_OK):
        return here / "layerdiffuse"
    return platformdirs.user_pictures_path() / "layerdiffuse"


Folder = Annotated[Path, BeforeValidator(_folder)]
Folders = Annotated[tuple[Path, ...], BeforeValidator(_folders)]
QueueSize = Annotated[int, Field(ge=1, le=100_000)]
QueuePixels = Annotated[int, Field(ge=1, le=10**9)]


class Settings(BaseSettings):
    """What can be set; `layerdiffuse-mcp settings` lists it."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore")

    model: str = Field("auto", description="Model used when a call names none; auto takes a prepared base, else pocket")
    output_dir: Folder | None = Field(None, description="Folder that pictures are written to, the only one")
    read_dirs: Annotated[Folders, NoDecode] = Field(
        (),
        description="Folders that pictures may be read from instead of the project folder, joined by the path "
        "separator; the output folder always",
    )
    models_dir: Folder = Field(
        platformdirs.user_data_path("layerdiffuse") / "models",
        description="Folder for your own base models (.safetensors) and layer files",
    )
    device: Device = Field("auto", description="Where models run")
    dtype: Dtype = Field(
        "auto", description="Number format; auto is exact float32 on a CPU, fastest bfloat16 where that is faster"
    )
    max_memory: float | None = Field(
        None, gt=0, le=1e6, allow_inf_nan=False, description="Memory that models may take on a device, in GB"
    )
    offload: Offload = Field("auto", description="What of a model leaves the device while unused; auto by free memory")
    workers: Annotated[int, Field(ge=1, le=64)] | Literal["auto"] = Field(
        "auto", description="Processes that draw at once; auto is one for each NVIDIA device, else one"
    )
    backend: BackendName = Field("local", description="Where workers run: processes of this machine, or Ray's nodes")
    ray_address: str | None = Field(
        None, description="HOST:PORT of a Ray cluster; else RAY_ADDRESS, the one that runs here, or one of its own"
    )
    ray_cpus: int | None = Field(
        None, ge=1, le=1024, description="CPUs of each worker in a Ray cluster without GPUs; all of a node unless set"
    )
    share_workers: bool | Literal["auto"] = Field(
        "auto",
        description="Draw in processes that your other servers of the same settings use too, so that each model is "
        "loaded once; auto on stdio alone, and not on Windows",
    )
    auto_download: bool = Field(False, description="Let a generation download the model it needs")
    idle_timeout: float = Field(
        900,
        ge=0,
        le=365 * DAY,
        allow_inf_nan=False,
        description="Seconds without work after which models are dropped; 0: never",
    )
    warm_up: bool = Field(True, description="Start the worker once the server has answered a first request")
    queue_size: QueueSize = Field(32, description="Jobs that may wait at once")
    queue_pixels: QueuePixels | None = Field(
        None, description="Pixels that all jobs which wait or run may draw together; left out, any number"
    )
    wait_seconds: float = Field(
        50, ge=0, le=600, allow_inf_nan=False, description="How long a call waits before it hands back a job id"
    )
    group_jobs: bool | Literal["auto"] = Field(
        "auto",
        description="Draw what waits and differs only in prompt and seed as one batch; auto where that was measured "
        "to take less time",
    )
    previews: bool = Field(False, description="Tell a running job's progress with a small picture of it")
    history: bool = Field(
        True, description="Keep an index of the pictures made and of jobs, so that their ids outlast the server"
    )
    resume_jobs: bool | Literal["auto"] = Field(
        "auto", description="Do jobs that waited when the last server ended; auto under --http alone"
    )
    tokens_file: Annotated[Path | None, BeforeValidator(_folder)] = Field(
        None, description="Tokens of --http clients, each with its own folders and limits, as TOML or JSON"
    )
    drain_seconds: float = Field(
        25,
        ge=0,
        le=DAY,
        allow_inf_nan=False,
        description="How long jobs that run may go on under --http when the server is told to end (SIGTERM)",
    )
    log_file: Annotated[Path | None, BeforeValidator(_folder)] = Field(
        None, description="File that the server also logs to, at most 4 of 5 MB with the older ones kept beside it"
    )
    max_pixels: int = Field(64_000_000, ge=4096, le=10**9, description="Largest picture that is read, in pixels")

    @model_validator(mode="before")
    @classmethod
    def _without_what_is_empty(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Leave out settings that are empty, and those that are nothing but a variable the client did not fill in."""
        given: dict[str, Any] = {}
        for name, value in values.items():
            text = value.strip() if isinstance(value, str) else None
            if text is not None and UNREPLACED.fullmatch(text):
                logger.warning("%s is %s, which was not filled in: it counts as not set", name, quoted(text))
            elif text != "":
                given[name] = value
        return given

    _here: Path = PrivateAttr(default_factory=working_directory)
    _default_output: Path = PrivateAttr(default_factory=_own_output)

    @property
    def here(self) -> Path:
        """The working directory when the settings were made, which may be gone by now."""
        return self._here

    @property
    def output(self) -> Path:
        """The output folder: as set, else `layerdiffuse/` in a writable project folder, else below the pictures."""
        return self._default_output if self.output_dir is None else self.output_dir

    @property
    def readable(self) -> tuple[Path, ...]:
        """Folders that pictures may be read from: those set (else the project folder), and the output folder."""
        project = (self.here,) if _is_project(self.here) else ()
        return tuple(dict.fromkeys((*(self.read_dirs or project), self.output)))
