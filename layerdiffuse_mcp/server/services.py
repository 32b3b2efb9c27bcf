"""What every tool works with, and how an agent's words become files and models.

A tool reaches it through its context: `services(ctx).jobs.submit(...)`. Clients that have tokens of their own have
services of their own, too, with their folders, jobs and subscriptions: whatever answers a request has no others at hand
(`Clients.own`, which the server asks before anything else).
"""

import os
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import unquote_to_bytes

import anyio
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.mcpserver import Context
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler, SubscriptionBus

from layerdiffuse_mcp.api.plan import GivenPicture
from layerdiffuse_mcp.backends.pictures import PictureRoom
from layerdiffuse_mcp.errors import AccessDenied, ImageError, InvalidRequest, JobNotFound
from layerdiffuse_mcp.jobs.queue import Jobs
from layerdiffuse_mcp.server.access import OpenedFile, find_picture, open_readable
from layerdiffuse_mcp.server.contents import Contents
from layerdiffuse_mcp.settings import Settings
from layerdiffuse_mcp.wording import short

if TYPE_CHECKING:
    from layerdiffuse_mcp.outputs.undrawn import Undrawn

IMAGES, JOBS = "layerdiffuse://images/", "layerdiffuse://jobs/"
_IMAGE_ID = re.compile(r"(job-[0-9a-z]+)(?:-([0-9]{1,6}))?")
_ADDRESS = re.compile(r"(?!file:)[a-z][a-z0-9+.-]+://|data:", re.IGNORECASE)
Keep = Callable[[OpenedFile], Path]


@dataclass
class Services:
    """One a server, or one a client with a token of its own, for as long as the server runs.

    `name` is the client's. `pictures` is where finished pictures are looked at and put together: never in the server's
    own process. `contents` holds the pictures that jobs start from. `listening` serves subscriptions to `events`.
    """

    settings: Settings
    jobs: Jobs
    pictures: PictureRoom
    name: str = ""
    contents: Contents = field(default_factory=Contents)
    matting: anyio.Lock = field(default_factory=anyio.Lock)
    """Held by the one matting network that runs: each takes gigabytes."""
    events: SubscriptionBus = field(default_factory=InMemorySubscriptionBus)
    warmed_up: bool = False

    def __post_init__(self) -> None:
        self.listening = ListenHandler(self.events)

    def change(self, settings: Settings) -> None:
        """What it may read and how much may be asked for is as these settings say, from the next call on."""
        self.settings = settings
        self.jobs.bound(settings)

    def image_path(self, image_id: str) -> Path:
        """The file of a picture that was made here, by its id `<job id>-<number>`.

        It reads the index where the job is not one of this server's, so it belongs in a thread.

        Raises:
            JobNotFound: no such job.
            ImageError: the job has no such picture.
        """
        name, slash, _ = image_id.removeprefix(IMAGES).partition("/")
        if slash:
            raise ImageError(
                f"{short(image_id)} is a view of a picture, which resources/read alone shows. Give the picture itself: "
                f"{short(name)}."
            )
        match = _IMAGE_ID.fullmatch(name)
        job_id, number = match.groups() if match else (name, None)
        try:
            job = self.jobs.get(job_id)
        except JobNotFound:
            made_before = self.jobs.index.find(job_id, int(number)) if number else None
            if made_before is None:
                raise
            return made_before.path
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
            return self._made(given)
        if _IMAGE_ID.fullmatch(given) is None:
            return open_readable(local_path(given), self.settings)
        try:
            return self._made(given)
        except JobNotFound as no_job:  # then it may still be a file's name
            try:
                return open_readable(given, self.settings)
            except ImageError:
                raise no_job from None

    def _made(self, image_id: str) -> OpenedFile:
        """The open file of a picture that was made here; errors as `readable`."""
        path = self.image_path(image_id)
        if not os.path.lexists(path):
            name = image_id.removeprefix(IMAGES)
            raise ImageError(f"{name} was deleted or moved. find_images lists the pictures that are there.")
        return open_readable(path, self.settings)

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

    def undrawn(self, opened: OpenedFile) -> "Undrawn":
        """What is known of a picture that holds no recipe; it belongs in a thread."""
        from layerdiffuse_mcp.outputs.undrawn import undrawn

        def beside(path: Path) -> BinaryIO:
            return self.readable(str(path)).file

        return undrawn(opened.file, opened.path, self.jobs.index, beside, self.settings.max_pixels)

    def find(self, wanted: GivenPicture, keep: Keep) -> Path:
        """A copy of a picture that a recipe starts from, found in the folders that may be read."""

        def opener(path: Path) -> OpenedFile:
            return open_readable(path, self.settings)

        with find_picture(wanted, self.settings.readable, opener) as file:
            return keep(file)


@dataclass(frozen=True)
class Clients:
    """The services of each client by its name; of a server without tokens of several there is one, of no name.

    `open` makes those of one more.
    """

    services: dict[str, Services] = field(default_factory=dict[str, Services])
    open: Callable[[str, Settings], Awaitable[Services]] | None = None

    async def follow(self, own: Mapping[str, Settings]) -> None:
        """Have services of these clients with these settings; those of others stay, for whom nobody asks any more.

        Raises:
            InvalidRequest: pictures of a client would lie elsewhere, which takes a new server; nothing is changed.
        """
        for name, settings in own.items():
            if name in self.services and self.services[name].settings.output != settings.output:
                raise InvalidRequest(
                    f"Pictures of {name} would lie in another folder, for which the server has to restart."
                )
        for name, settings in own.items():
            if name in self.services:
                self.services[name].change(settings)
            elif self.open is not None:
                with anyio.CancelScope(shield=True):  # they are for all calls, not for the one that came first
                    self.services[name] = await self.open(name, settings)

    def own(self, request: Any) -> Services:
        """Those of whoever made an HTTP request, or of the one client that there is.

        Raises:
            AccessDenied: it is nobody's.
        """
        user = request.scope.get("user") if request is not None else None
        name = user.username if isinstance(user, AuthenticatedUser) else ""
        if name not in self.services:
            raise AccessDenied("This server is for holders of its tokens, over HTTP.")
        return self.services[name]

    async def drain(self, seconds: float) -> None:
        """Have all prepare for the end; see `Jobs.drain`."""
        async with anyio.create_task_group() as tasks:
            for one in self.services.values():
                one.listening.close()
                tasks.start_soon(one.jobs.drain, seconds)


def local_path(given: str) -> str:
    """A path as it is, or that of a `file://` address, whose percent signs stand for bytes."""
    if _ADDRESS.match(given):
        raise ImageError(
            f"{short(given)} is an address, and addresses are not fetched. Save the picture into a folder that may be "
            "read, and give its path."
        )
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
