"""What every tool works with, and how an agent's words become paths and models.

A tool reaches it through its context: `services(ctx).jobs.submit(...)`.
"""

from dataclasses import dataclass
from pathlib import Path

from mcp.server.mcpserver import Context

from layerdiffuse_mcp.backends.pictures import PictureRoom
from layerdiffuse_mcp.errors import ImageError, ModelNotFound
from layerdiffuse_mcp.hub import catalog
from layerdiffuse_mcp.jobs import Jobs
from layerdiffuse_mcp.methods import Task, families_for
from layerdiffuse_mcp.paths import readable_file
from layerdiffuse_mcp.settings import Settings

IMAGES, JOBS = "layerdiffuse://images/", "layerdiffuse://jobs/"


@dataclass
class Services:
    """One a server, for as long as it runs.

    `pictures` is where finished pictures are looked at and put together: never in the server's own process.
    """

    settings: Settings
    jobs: Jobs
    pictures: PictureRoom
    warmed_up: bool = False

    def image_path(self, image_id: str) -> Path:
        """The file of a picture that this server made, by its id `<job id>-<number>`.

        Raises:
            JobNotFound: no such job.
            ImageError: the job has no such picture.
        """
        job_id, _, number = image_id.removeprefix(IMAGES).rpartition("-")
        job = self.jobs.get(job_id or image_id)
        image = job.image(int(number)) if number.isdecimal() else None
        if image is None:
            count = len(job.outcome.images) if job.outcome else 0
            raise ImageError(f"There is no picture {image_id!r}: {job.id} has {count}, numbered from {job.id}-1.")
        return image.path

    def file(self, given: str) -> Path:
        """The file that an agent means by a path, a picture's id or its URI.

        Raises:
            AccessDenied, ImageError, JobNotFound: it may not be read, or there is no such file.
        """
        if given.startswith((IMAGES, "job-")) and "/" not in given.removeprefix(IMAGES):
            return self.image_path(given)
        return readable_file(given.removeprefix("file://"), self.settings)

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


def services(ctx: Context[Services]) -> Services:
    """The services behind a tool's context."""
    return ctx.request_context.lifespan_context
