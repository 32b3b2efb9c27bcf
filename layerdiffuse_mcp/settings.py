"""Every setting of the server, the worker and the command line, in one place.

Each is read from `LAYERDIFFUSE_<NAME>` in the environment and may be overridden by a flag of
the command line. The object is frozen and pickles: it goes to the worker as it is.
"""

import os
from pathlib import Path
from typing import Annotated, Literal

import platformdirs
from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

Device = Literal["auto", "cpu", "cuda", "mps"]
Dtype = Literal["auto", "fastest", "float32", "bfloat16", "float16"]
Offload = Literal["auto", "none", "in_turn", "layers"]


class Settings(BaseSettings):
    """What can be set; the descriptions are what `layerdiffuse-mcp --help` and README print."""

    model_config = SettingsConfigDict(env_prefix="LAYERDIFFUSE_", frozen=True, extra="ignore")

    model: str = Field("auto", description="Model used when a call names none; auto takes a prepared base, else pocket")
    output_dir: Path | None = Field(None, description="Folder that pictures are written to, the only one")
    read_dirs: Annotated[tuple[Path, ...], NoDecode] = Field(
        (), description="Folders that pictures may be read from, joined by the path separator; the output folder always"
    )
    models_dir: Path = Field(
        platformdirs.user_data_path("layerdiffuse") / "models",
        description="Folder for your own base models (.safetensors) and layer files",
    )
    device: Device = Field("auto", description="Where models run")
    dtype: Dtype = Field(
        "auto", description="Number format; auto is exact float32 on a CPU, fastest bfloat16 where that is faster"
    )
    max_memory: float | None = Field(None, gt=0, description="Memory that models may take, in GB")
    offload: Offload = Field("auto", description="What of a model leaves the device while unused; auto by free memory")
    auto_download: bool = Field(False, description="Let a generation download the model it needs")
    idle_timeout: float = Field(900, ge=0, description="Seconds without work after which models are dropped; 0: never")
    warm_up: bool = Field(True, description="Start the worker once the server has answered a first request")
    queue_size: int = Field(32, ge=1, le=1000, description="Jobs that may wait at once")
    wait_seconds: float = Field(50, ge=0, le=600, description="How long a call waits before it hands back a job id")
    group_jobs: bool = Field(False, description="Draw waiting jobs that differ only in prompt and seed as one batch")
    previews: bool = Field(False, description="Tell a running job's progress with a small picture of it")
    max_pixels: int = Field(64_000_000, ge=4096, description="Largest picture that is read, in pixels")

    @field_validator("read_dirs", mode="before")
    @classmethod
    def _split_paths(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(Path(part).expanduser() for part in value.split(os.pathsep) if part)
        return value

    @property
    def output(self) -> Path:
        """The output folder: as set, else `layerdiffuse/` in a writable project folder, else below the pictures."""
        if self.output_dir is not None:
            return self.output_dir.expanduser().absolute()
        here = Path.cwd()
        if here not in (Path.home(), Path(here.anchor)) and os.access(here, os.W_OK):
            return here / "layerdiffuse"
        return platformdirs.user_pictures_path() / "layerdiffuse"

    @property
    def readable(self) -> tuple[Path, ...]:
        """Folders that pictures may be read from: those set (else the project folder), and the output folder."""
        here = Path.cwd()
        project = () if here in (Path.home(), Path(here.anchor)) else (here,)
        return tuple(path.expanduser().absolute() for path in (*(self.read_dirs or project), self.output))
