"""What every tool works with, and how an agent's words become files and models.

A tool reaches it through its context: `services(ctx).jobs.submit(...)`.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote_to_bytes

from mcp.server.mcpserver import Context

from layerdiffuse_mcp.backends.pictures import PictureRoom
from layerdiffuse_mcp.errors import ImageError, JobNotFound, ModelNotFound, short
from layerdiffuse_mcp.hub import catalog
from layerdiffuse_mcp.jobs import Jobs
from layerdiffuse_mcp.methods import Task, families_for
from layerdiffuse_mcp.recipes import GivenPicture
from layerdiffuse_mcp.server.access import OpenedFile, find_picture, open_readable
from layerdiffuse_mcp.server.contents import Contents
from layerdiffuse_mcp.settings import Settings

IMAGES, JOBS = "layerdiffuse://images/", "layerdiffuse://jobs/"
_IMAGE_ID = re.compile(r"(job-[0-9a-z]+)(?:-([0-9]{1,6}))?")
Keep = Callable[[OpenedFile], Path]


@dataclass
class Services:
    """One a server, for as long as it runs.

    `pictures` is where finished pictures are looked at and put together: never in the server's own process. `contents`
    holds the pictures that jobs start from.
    """

    settings: Settings
    jobs: Jobs
    pictures: PictureRoom
    contents: Contents = field(default_factory=Contents)
    warmed_up: bool = False

    def image_path(self, image_id: str) -> Path:
        """The file of a picture that this server made, by its id `<job id>-<number>`.

        Raises:
            JobNotFound: no such job.
            ImageError: the job has no such picture.
        """
        name = image_id.removeprefix(IMAGES)
        match = _IMAGE_ID.fullmatch(name)
        job_id, number = match.groups() if match else (name, None)
        job = self.jobs.get(job_id)
        image = job.image(int(number)) if number else None
        if image is None:
            count = len(job.outcome.images) if job.outcome else 0
            which = f"There is no picture {name!r}" if number else f"{name!r} is a job and no picture"
            raise ImageError(f"{which}: {job.id} has {count}, numbered from {job.id}-1.")
        return image.path

    def readable(self, given: str) -> OpenedFile:
        """The open file that an agent means by a path, a `file://` address, a picture's id or its address.

        Raises:
            AccessDenied, ImageError, JobNotFound: it may not be read, or there is no such file.
        """
        if given.startswith(IMAGES):
            return open_readable(self.image_path(given), self.settings)
        if _IMAGE_ID.fullmatch(given) is None:
            return open_readable(_path(given), self.settings)
        try:
            return open_readable(self.image_path(given), self.settings)
        except JobNotFound as no_job:  # then it may still be a file's name
            try:
                return open_readable(given, self.settings)
            except ImageError:
                raise no_job from None

    def picture(self, given: str, keep: Keep) -> Path:
        """A copy of a given picture for a job; its header is read, so that what is no picture is refused at once.

        Raises:
            AccessDenied, ImageError, JobNotFound: it may not be read, there is no such file, or it is no picture.
        """
        from layerdiffuse_mcp.images.read import opened

        with self.readable(given) as file:
            with opened(file.file, self.settings.max_pixels):
                pass
            return keep(file)

    def find(self, wanted: GivenPicture, keep: Keep) -> Path:
        """A copy of a picture that a recipe starts from, found in the folders that may be read."""

        def opener(path: Path) -> OpenedFile:
            return open_readable(path, self.settings)

        with find_picture(wanted, self.settings.readable, opener) as file:
            return keep(file)

    def check_model(self, name: str | None, task: Task) -> None:
        """Make sure that the model exists and that its layer files for the task are here.

        Raises:
            ModelNotFound: no such model, or it cannot do the task; says which models can.
        """
        entry = catalog.find(name, self.settings)
        able = catalog.tasks(entry, self.settings)
        if entry.prepared and able.get(task):
            return
        if self.settings.auto_download and task in able:
            return  # the engine fetches what is missing
        can = [
            other.name
            for other in catalog.models(self.settings)
            if other.prepared and catalog.tasks(other, self.settings).get(task)
        ]
        if not entry.prepared:
            why = f"The model {entry.name} is not on this machine"
        elif task not in able:
            why = f"The model {entry.name} is of the family {entry.family}, which has no layer files for {task.value}"
        else:
            why = f"The model {entry.name} lacks the layer files for {task.value}"
        if can:
            raise ModelNotFound(f"{why}. Models that can do it now: {', '.join(can)}.")
        families = " or ".join(families_for(task))
        raise ModelNotFound(
            f"{why}, and no model on this machine can do it yet. It needs a base of the family {families} and its "
            "layer files: prepare_model fetches them; list_models shows what there is."
        )


def _path(given: str) -> str:
    """A path as it is, or that of a `file://` address, whose percent signs stand for bytes."""
    scheme, _, rest = given.partition("://")
    if scheme.lower() != "file":
        return given
    host, slash, path = rest.partition("/")
    if host not in ("", "localhost") or not slash:
        raise ImageError(f"{short(given)} names a file of another machine. Give the absolute path of a file here.")
    decoded = os.fsdecode(unquote_to_bytes(path))
    return decoded if os.name == "nt" else "/" + decoded


def services(ctx: Context[Services]) -> Services:
    """The services behind a tool's context."""
    return ctx.request_context.lifespan_context
