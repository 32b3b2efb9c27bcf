"""Given pictures of jobs that wait when their server ends, kept in the user's state folder for the next one.

    keep(jobs)                                  # at the end, as far as there is room
    kept("job-863032aa", {"ab12...": "a.png"})  # {"ab12...": the path of its copy}; empty where it is not kept
    forget("job-863032aa")                      # at the job's end
    sweep()                                     # at the start: what no server came back for

They lie at `given/<job id>/<SHA-256>/<name>`, in a folder that only this user may enter. All functions read and write
files: not in an event loop.
"""

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import platformdirs

from layerdiffuse_mcp.api.plan import Inputs
from layerdiffuse_mcp.jobs.job import Job

LARGEST = 500_000_000
"""Bytes that they may take altogether; a job whose pictures have no room is not kept."""
DAY = 86_400.0
"""Seconds for which they wait for a server."""

logger = logging.getLogger(__name__)


def keep(jobs: Iterable[Job]) -> None:
    """Copy the given pictures of these jobs; what is kept already stays."""
    folder = _folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        room = LARGEST - sum(path.stat().st_size for path in folder.rglob("*") if os.path.isfile(path))
    except OSError as error:
        logger.warning("%s cannot be used: jobs that start from pictures are not resumed (%s)", folder, error)
        return
    for job in jobs:
        own = folder / job.id
        if os.path.exists(own):
            continue
        try:
            room -= sum(path.stat().st_size for path in job.inputs.values())
            if room < 0:
                logger.warning("%s will not be resumed: there is no room for the pictures that it starts from", job.id)
                return
            for digest, path in job.inputs.items():
                (own / digest).mkdir(parents=True)
                shutil.copyfile(path, own / digest / path.name)
        except OSError as error:
            logger.warning("%s will not be resumed: the pictures that it starts from are not kept (%s)", job.id, error)
            shutil.rmtree(own, ignore_errors=True)


def kept(job: str, names: Mapping[str, str]) -> Inputs:
    """The copies of a job's given pictures, whose names are known by their SHA-256; none if any is missing."""
    paths = {digest: _folder() / job / digest / Path(name).name for digest, name in names.items()}
    return paths if all(os.path.isfile(path) for path in paths.values()) else {}


def forget(job: str) -> None:
    """Remove the copies that were kept of a job, if there are any."""
    shutil.rmtree(_folder() / job, ignore_errors=True)


def sweep() -> None:
    """Remove what has been kept for longer than a day."""
    with contextlib.suppress(OSError):
        for own in _folder().iterdir():
            if time.time() - own.stat().st_mtime > DAY:
                shutil.rmtree(own, ignore_errors=True)


def _folder() -> Path:
    return platformdirs.user_state_path("layerdiffuse") / "given"
