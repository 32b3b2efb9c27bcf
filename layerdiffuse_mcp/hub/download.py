"""Preparing a model: what has to be fetched, whether it fits, fetching it, and what to say when that fails.

    done = prepare("realvisxl-v4", settings, report)                # the base and all layer files of its family
    done = prepare(entry, settings, report, methods=entry_methods)
    [file.path for file in done.fetched]
    prepare_all(planned.downloads, settings, report)                # what a planned request lacks

`report` gets the progress over the bytes of all files, several times a second; raising from it stops whatever is being
done, and what is here by then stays for the next time. Nothing is removed: a file of the hub's cache that is proven to
be damaged gives way to its replacement once that is here and whole. This is the only door to the network, and it opens
only for an explicit wish: `layerdiffuse-mcp models prepare`, the tool `prepare_model`, or
`LAYERDIFFUSE_AUTO_DOWNLOAD=1`.
"""

import errno
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx2
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)

from layerdiffuse_mcp.api.outcome import Progress
from layerdiffuse_mcp.api.plan import Download
from layerdiffuse_mcp.errors import DownloadError, ModelError
from layerdiffuse_mcp.families.entries import HubFile, LoraEntry, ModelEntry
from layerdiffuse_mcp.families.matting import MattingNetwork
from layerdiffuse_mcp.hub import catalog
from layerdiffuse_mcp.hub.fetch import SHA256, Source, fetch, look_up
from layerdiffuse_mcp.hub.hashes import remember
from layerdiffuse_mcp.hub.headers import file_sha256, read_header
from layerdiffuse_mcp.hub.leftovers import sweep
from layerdiffuse_mcp.hub.libraries import check_libraries
from layerdiffuse_mcp.hub.remedies import by_hand
from layerdiffuse_mcp.hub.versions import FileVersion, file_version
from layerdiffuse_mcp.settings import Settings
from layerdiffuse_mcp.wording import in_words, printable

Report = Callable[[Progress], None]
MARGIN = 500_000_000
"""Bytes that have to stay free on the disk."""
REPORT_EVERY = 0.25
SPEED_OVER = 10.0
"""Seconds: how far the speed looks back."""


@dataclass(frozen=True)
class Fetched:
    """A file that was not here before."""

    file: HubFile
    path: Path
    bytes: int
    seconds: float


@dataclass(frozen=True)
class Prepared:
    """What a preparation did."""

    name: str
    fetched: tuple[Fetched, ...]
    notes: tuple[str, ...]
    """What went wrong on the way and was put right, and what is left to do."""


def prepare(
    model: str | ModelEntry,
    settings: Settings,
    report: Report,
    *,
    methods: Collection[str] | None = None,
    verify: bool = False,
) -> Prepared:
    """Fetch whatever a base needs and this machine lacks: itself, transparency files, the layer files of `methods`.

    Args:
        model: an entry, or a name or alias of a model, a LoRA or a matting network.
        methods: layer methods to fetch for; all of the family when none are named.
        verify: check every file that is here already against its checksum too; without it only their headers are read.

    Raises:
        ModelNotFound: there is no such model, or what computes with it is not installed.
        DownloadError: something could not be fetched, what is here by then stays, and the next call goes on from there;
            or a file that only its owner may replace is damaged, or of a number format that is not read here.
    """
    progress = _Pace(report)
    sweep()
    entry = model if isinstance(model, ModelEntry) else catalog.find_any(model, settings)
    check_libraries(entry, settings)
    if not (entry.published if isinstance(entry, ModelEntry) else entry.remote):  # nobody but the user can bring it
        _ = catalog.base_file(entry, settings) if isinstance(entry, ModelEntry) else catalog.lora(entry.name, settings)
    fetched: list[Fetched] = []
    while True:  # an index that came names further files
        came = _fetched(entry, settings, methods, verify, progress)
        fetched += came
        if not (came and isinstance(entry, ModelEntry) and entry.folder):
            break
    if isinstance(entry, ModelEntry):
        for made in catalog.unconverted(entry, settings, methods):
            progress.note(f"{entry.name} lacks a layer file. {made}")
    report(Progress(fraction=1.0 if fetched else 0.0, message=f"{entry.name} is on this machine"))
    return Prepared(entry.name, tuple(fetched), tuple(progress.notes))


def _fetched(
    entry: ModelEntry | LoraEntry | MattingNetwork,
    settings: Settings,
    methods: Collection[str] | None,
    verify: bool,
    progress: "_Pace",
) -> list[Fetched]:
    """Fetch what is known to be lacking, and what is damaged."""
    wanted, missing = catalog.needed(entry, methods), catalog.missing(entry, settings, methods)
    damaged = dict(_damaged(wanted, settings, verify, progress))
    sources: list[Source] = []
    for file in [*missing, *damaged]:
        progress.say(f"asking for {file.name}")
        with _explained(file, settings, problem=damaged[file].problem if file in damaged else ""):
            source = look_up(file, progress)
        sources.append(replace(source, damaged=damaged[file].version) if file in damaged else source)
    _check_space(sources)
    whole = (entry.bytes or 0) if isinstance(entry, ModelEntry) and entry.folder else 0
    # what an index names is none of the sources before that is here
    progress.expect(max(whole, sum(source.size for source in sources)), sum(source.here for source in sources))
    fetched: list[Fetched] = []
    for number, source in enumerate(sources, start=1):
        begun = time.monotonic()
        progress.name = f"{source.remote.name} ({number} of {len(sources)})"
        with _explained(source.remote, settings, source):
            path = fetch(source, progress)
        fetched.append(Fetched(source.remote, path, source.size, time.monotonic() - begun))
        if source.remote in damaged:
            progress.note(f"{path.name} was damaged and was fetched again ({damaged[source.remote].problem})")
    return fetched


def prepare_all(downloads: Sequence[Download], settings: Settings, report: Report) -> list[Prepared]:
    """Prepare one after another; `report` gets the progress over all of them. Raises as `prepare` does."""
    done: list[Prepared] = []
    for download in downloads:

        def share(progress: Progress) -> None:
            report(progress.model_copy(update={"fraction": (len(done) + progress.fraction) / len(downloads)}))

        done.append(prepare(download.model, settings, share, methods=download.methods))
    return done


@dataclass(frozen=True)
class _Damage:
    problem: str
    version: FileVersion


def _damaged(
    wanted: Collection[HubFile], settings: Settings, verify: bool, pace: "_Pace"
) -> Iterator[tuple[HubFile, _Damage]]:
    """Those of the published files that are in the hub's cache and proven to be damaged.

    Raises:
        DownloadError: a file outside the cache is damaged, or one cannot be used as it was published.
    """
    cache = Path(constants.HF_HUB_CACHE).resolve()
    for remote in wanted:
        path = catalog.located(remote, settings)
        if path is None:
            continue
        version = file_version(path)
        problem = _problem(remote, path, version, verify, pace)
        if problem is None:
            continue
        if not version.path.is_relative_to(cache):
            raise DownloadError(f"{printable(path)} is damaged: {problem} Remove it, then repeat this.")
        yield remote, _Damage(problem, version)


def _problem(remote: HubFile, path: Path, version: FileVersion, verify: bool, pace: "_Pace") -> str | None:
    """What proves that a file is not the one that was published; None when nothing does.

    Raises:
        DownloadError: it is the very one, and cannot be used.
    """
    problem = None
    if remote.is_weights:
        try:
            read_header(path, DownloadError, any_dtype=True)
        except ModelError as error:
            problem = str(error)
    named = version.path.name
    expected = named if SHA256.fullmatch(named) else remote.sha256
    if expected is not None and (verify or problem or remote.pinned):
        digest = _sha256(version, remote.name, pace)
        if not digest.startswith(expected):
            return problem or f"its SHA-256 is {digest[:10]} instead of {expected[:10]}."
        if problem:
            raise DownloadError(f"{problem} It is as it was published, so fetching it again would not help.")
    if problem is None and remote.is_weights:
        read_header(path, DownloadError)  # whole, and perhaps of a number format that cannot be read
    return problem


def _sha256(version: FileVersion, name: str, pace: "_Pace") -> str:
    """The checksum of what is on the disk now, whatever is remembered of it."""
    digest = file_sha256(version.path, lambda count: pace.checked(name, count, version.size))
    remember(version, digest)
    return digest


def _check_space(sources: list[Source]) -> None:
    needed = sum(source.size - source.here for source in sources)
    folder = Path(constants.HF_HUB_CACHE)
    free = shutil.disk_usage(next(parent for parent in (folder, *folder.parents) if os.path.exists(parent))).free
    if sources and needed + MARGIN > free:
        raise DownloadError(
            f"Not enough disk space: {len(sources)} files need {in_words(needed)} and {in_words(MARGIN)} to spare, and "
            f"{folder} has {in_words(free)} free. Nothing was fetched. Free some space, or move the cache with HF_HOME."
        )


class _Pace:
    """Turns bytes into progress with speed and time left; a download's `Watch`."""

    def __init__(self, report: Report) -> None:
        self._on_progress = report
        self.name = ""
        self.notes: list[str] = []
        self._total = self._here = self._read = 0
        self._last = ""
        self._highest = 0.0
        self._reported = 0.0
        self._trail: deque[tuple[float, int]] = deque()

    def checked(self, name: str, count: int, size: int) -> None:
        """So many further bytes of a file of `size` bytes were read for its checksum."""
        self._read = self._read + count if self.name == name else count
        self.name = name
        if self._is_time():
            self._report(f"checking {name}: {in_words(self._read)} of {in_words(size)}")

    def expect(self, total: int, here: int) -> None:
        """Begin to count: so many bytes altogether, so many of them here."""
        self._total, self._here = total, here
        self._trail.append((time.monotonic(), here))

    def moved(self, count: int) -> None:
        self._here += count
        if not self._is_time():
            return
        now = self._reported
        if not self._trail:
            self._report(self._last)
            return
        self._trail.append((now, self._here))
        while len(self._trail) > 2 and now - self._trail[1][0] > SPEED_OVER:
            self._trail.popleft()
        self._report(f"downloading {self.name}: {in_words(self._here)} of {in_words(self._total)}{self._speed()}")

    def say(self, message: str) -> None:
        self._report(message)

    def note(self, message: str) -> None:
        self.notes.append(message)
        self._report(message)

    def _is_time(self) -> bool:
        """Whether the last report is long enough ago."""
        now = time.monotonic()
        if now - self._reported < REPORT_EVERY:
            return False
        self._reported = now
        return True

    def _report(self, message: str) -> None:
        self._last = message
        self._highest = max(self._highest, min(1.0, self._here / self._total) if self._total else 0.0)
        self._on_progress(Progress(fraction=self._highest, message=message))

    def _speed(self) -> str:
        (begun, before), (now, here) = self._trail[0], self._trail[-1]
        speed = (here - before) / (now - begun) if now > begun else 0.0
        if speed <= 0:
            return ""
        left = (self._total - here) / speed
        return f", {in_words(speed)}/s, about {f'{left / 60:.0f} min' if left > 90 else f'{left:.0f} s'} left"


@contextmanager
def _explained(file: HubFile, settings: Settings, source: Source | None = None, problem: str = "") -> Generator[None]:
    """Put whatever a request or the disk raises into words; `problem` is what is wrong with the file that is here."""
    try:
        yield
    except (httpx2.HTTPError, OSError, EOFError) as error:
        hint = _hint(error, file)
        kept = f" {in_words(source.here)} of {in_words(source.size)} are here and stay." if source else ""
        damage = f" The file that is here is damaged and was left as it is: {problem}" if problem else ""
        raise DownloadError(
            f"{file.name} could not be fetched from {file.repo}: {hint}{kept}{damage} {by_hand(file, settings)}"
        ) from error


def _hint(error: Exception, file: HubFile) -> str:
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    for kind, code, text in _HINTS:
        if isinstance(error, kind) and code in (None, status):
            return text.format(hub=constants.ENDPOINT, repo=file.repo, path=file.path, error=error, status=status)
    return _DISK.get(getattr(error, "errno", None) or 0, f"{type(error).__name__}: {error}.")


_HINTS: tuple[tuple[type[Exception], int | None, str], ...] = (
    (
        GatedRepoError, None,
        "its owner asks you to agree to conditions first. Open {hub}/{repo} in a browser, agree, put a token of your "
        "account into HF_TOKEN (or run `hf auth login`), then repeat this.",
    ),
    (
        RepositoryNotFoundError, None,
        "there is no such repository, or it is private. If you have access, put a token into HF_TOKEN (or run "
        "`hf auth login`), then repeat this.",
    ),
    (
        RemoteEntryNotFoundError, None,
        "the repository has no file {path}. It may have been renamed: look at {hub}/{repo}.",
    ),
    (OfflineModeIsEnabled, None, "HF_HUB_OFFLINE forbids it. Unset it, then repeat this."),
    (HfHubHTTPError, 401, "the hub does not accept your token. Put a valid one into HF_TOKEN, or unset it."),
    (
        HfHubHTTPError, 403,
        "the hub refuses it to you (403). Check that your token may read {repo}, then repeat this.",
    ),
    (HfHubHTTPError, 404, "the hub does not know it (404). Look at {hub}/{repo}."),
    (HfHubHTTPError, 429, "the hub has had too many requests from here. Wait a few minutes, then repeat this."),
    (HfHubHTTPError, None, "the hub answered with status {status}. Try again later."),
    (
        LocalEntryNotFoundError, None,
        "the hub {hub} did not answer. Check the network, your proxy and HF_ENDPOINT, then repeat this.",
    ),
    (
        httpx2.TimeoutException, None,
        "the hub {hub} did not answer in time. Check the network and your proxy, then repeat this.",
    ),
    (
        httpx2.HTTPError, None,
        "the hub {hub} cannot be reached. Check the network, your proxy and HF_ENDPOINT, then repeat this.",
    ),
)  # fmt: skip
"""What to say: the first row that fits the error, and its HTTP status where one is given."""

_DISK: dict[int, str] = {
    errno.ENOSPC: "the disk is full. Free some space, or move the cache with HF_HOME, then repeat this.",
    errno.EDQUOT: "your disk quota is used up. Free some space, or move the cache with HF_HOME, then repeat this.",
    errno.EACCES: "the cache folder may not be written. Check its owner, or move the cache with HF_HOME.",
    errno.EROFS: "the cache folder may not be written. Move the cache with HF_HOME.",
}
