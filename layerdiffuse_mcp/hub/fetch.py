"""One file from the model hub into the hub's own cache: resumable, verified, visible only when it is whole.

    source = look_up(remote, watch)          # asks the hub: commit, checksum, size
    path = fetch(source, watch)

`huggingface_hub` knows the endpoint, the token, the cache's place and offline mode. The bytes are moved and the cache
entry is made here: its own download throws away what it has when it is stopped, and takes what is at the repository's
`main` when it runs, which may be another file than the one that was looked up. A partial file stays beside the cache's
files as `<checksum>.layerdiffuse.part` and the next call goes on from there. A file enters the cache after its SHA-256
and its header have been checked, so whatever the cache shows can be used; one that is damaged there stays until its
replacement is whole, and gives way to it in one step.
"""

import hashlib
import os
import queue
import re
import secrets
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import httpx2
from filelock import Timeout
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from layerdiffuse_mcp.errors import DownloadError
from layerdiffuse_mcp.families.entries import HubFile
from layerdiffuse_mcp.hub.hashes import remember
from layerdiffuse_mcp.hub.headers import HASH_CHUNK, read_header
from layerdiffuse_mcp.hub.leftovers import PART, lock
from layerdiffuse_mcp.hub.versions import FileVersion, file_version
from layerdiffuse_mcp.images.files import replace_atomically
from layerdiffuse_mcp.wording import in_words, printable

SHA256 = re.compile(r"[0-9a-f]{64}")
PLAIN = re.compile(r"[0-9A-Za-z_-]{1,200}")
"""What may become a file name in the cache: no dot, no slash."""
ATTEMPTS_WITHOUT_PROGRESS = 5
FIRST_PAUSE = 1.0
"""Seconds before the first new attempt; each further one waits twice as long."""
BEAT = 0.2
"""Seconds between two signs of life while the network is waited for."""
PASSING_STATUS = frozenset({408, 429, 500, 502, 503, 504})
PASSING = (httpx2.TransportError, HfHubHTTPError)
T = TypeVar("T")


class Watch(Protocol):
    """Who is told how a download goes. Raising from any method stops it; the part that is here stays."""

    def moved(self, count: int) -> None:
        """`count` further bytes are here; 0 is a sign of life, less than 0 means that bytes had to be dropped."""
        ...

    def say(self, message: str) -> None:
        """What is being done."""
        ...

    def note(self, message: str) -> None:
        """Something went wrong and is being put right."""
        ...


@dataclass(frozen=True)
class Source:
    """A file as the hub has it now."""

    remote: HubFile
    commit: str
    etag: str
    """Its checksum: SHA-256 for a large file, which any weight file is."""
    size: int
    damaged: FileVersion | None = None
    """The cache's content under this checksum that is known to be another one, and is to be replaced."""

    @property
    def folder(self) -> Path:
        """Where the cache keeps the repository."""
        return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=self.remote.repo, repo_type="model")

    @property
    def blob(self) -> Path:
        """Where the cache keeps its content."""
        return self.folder / "blobs" / self.etag

    @property
    def partial(self) -> Path:
        """Where the part of it is kept that has been fetched so far."""
        return self.blob.with_name(self.etag + PART)

    @property
    def is_here(self) -> bool:
        """Whether all of it is in the cache."""
        if not os.path.isfile(self.blob) or self.blob.stat().st_size != self.size:
            return False
        return self.damaged is None or file_version(self.blob) != self.damaged

    @property
    def here(self) -> int:
        """Bytes of it that are on this machine already."""
        if self.is_here:
            return self.size
        return min(self.partial.stat().st_size, self.size) if os.path.isfile(self.partial) else 0


def look_up(remote: HubFile, watch: Watch) -> Source:
    """Ask the hub for a file's commit, checksum and size.

    Raises:
        DownloadError: what the hub has is not the file that is known by that name, or not a weight file.
        HfHubHTTPError, TransportError, OSError: see `download.py`, which puts them into words; what `watch` raises.
    """
    if not (remote.is_weights or remote.is_text or remote.pinned or remote.is_converted):
        raise DownloadError(f"{remote.path} is not fetched: only .safetensors files are; others can run code.")
    url = hf_hub_url(remote.repo, remote.path, revision=remote.revision)
    ask = (get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT) for _ in range(1))
    (facts,) = _with_beats(ask, watch)
    if facts.commit_hash is None or facts.etag is None or facts.size is None:
        raise DownloadError(
            f"{constants.ENDPOINT} does not answer like a model hub for {remote.path}: commit, checksum or size is "
            "missing. Check HF_ENDPOINT and your proxy."
        )
    if not (PLAIN.fullmatch(facts.etag) and PLAIN.fullmatch(facts.commit_hash)):
        raise DownloadError(
            f"{constants.ENDPOINT} names {remote.path} by a checksum or commit that is none. Check HF_ENDPOINT."
        )
    if remote.revision not in (None, facts.commit_hash):
        raise DownloadError(
            f"{constants.ENDPOINT} answers with another commit of {remote.repo} than {remote.revision}, which "
            f"{remote.name} is taken from. Check HF_ENDPOINT."
        )
    known = remote.sha256 or ""
    if SHA256.fullmatch(facts.etag) and not facts.etag.startswith(known):
        raise DownloadError(
            f"{remote.name} in {remote.repo} is another file than the published one: its SHA-256 begins with "
            f"{facts.etag[:10]} instead of {known}. It was not fetched; look at the repository before you use it."
        )
    return Source(remote, facts.commit_hash, facts.etag, facts.size)


def fetch(source: Source, watch: Watch) -> Path:
    """Bring a file into the cache, going on where an earlier call stopped; returns its path there.

    Raises:
        DownloadError: it was damaged twice in a row, or is no safetensors file and not pinned.
        HfHubHTTPError, TransportError, OSError: as `look_up`; and whatever `watch` raises.
    """
    source.blob.parent.mkdir(parents=True, exist_ok=True)
    with _locked(source, watch):
        if source.is_here:
            return _enter(source)
        part, problem = _moved_and_checked(source, watch)
        if problem:
            watch.note(f"{source.remote.name} {problem}; it was removed and is fetched again")
            part, problem = _moved_and_checked(source, watch)
        if problem:
            raise DownloadError(
                f"{source.remote.name} {problem}, twice in a row, and was removed. Try again later; if it "
                f"stays so, a proxy or mirror between here and {constants.ENDPOINT} may be damaging it."
            )
        part.reach_the_disk()
        source.partial.replace(source.blob)
        path = _enter(source)
        remember(file_version(path), part.digest.hexdigest())
        return path


def _enter(source: Source) -> Path:
    """Show the content under its name in the commit that was looked up; one that nobody chose is the `main` of now."""
    path = source.folder / "snapshots" / source.commit / source.remote.path
    path.parent.mkdir(parents=True, exist_ok=True)
    if not (path.is_symlink() and path.resolve() == source.blob.resolve()):
        link = path.with_name(f".{secrets.token_hex(6)}{PART}")
        try:
            link.symlink_to(os.path.relpath(source.blob, path.parent))
            link.replace(path)
        except OSError:  # no links here: the cache has the content under its name, and no other copy
            link.unlink(missing_ok=True)
            source.blob.replace(path)
    if source.remote.revision is not None:
        return path
    main = source.folder / "refs" / "main"
    main.parent.mkdir(exist_ok=True)
    replace_atomically(main, source.commit.encode())
    return path


def _moved_and_checked(source: Source, watch: Watch) -> "tuple[_Part, str | None]":
    """Fetch what is lacking and check the whole; a part with a problem is removed, and the problem returned too."""
    part = _Part(source, watch)
    _move(part)
    problem = part.problem()
    if problem:
        watch.moved(-part.size)
        source.partial.unlink()
    return part, problem


class _Part:
    """The partial file and the checksum of what is in it."""

    def __init__(self, source: Source, watch: Watch) -> None:
        self.source, self.watch = source, watch
        self.digest = hashlib.sha256()
        self.size = 0
        if os.path.isfile(source.partial) and source.partial.stat().st_size > source.size:
            watch.moved(-source.here)
            source.partial.unlink()
        source.partial.touch()
        with open(source.partial, "rb") as file:
            while chunk := file.read(HASH_CHUNK):
                self.digest.update(chunk)
                self.size += len(chunk)
                watch.moved(0)

    def append(self, chunks: Iterator[bytes]) -> None:
        with open(self.source.partial, "ab") as file:
            for chunk in chunks:
                file.write(chunk)
                self.digest.update(chunk)
                self.size += len(chunk)
                self.watch.moved(len(chunk))

    def restart(self) -> None:
        self.watch.moved(-self.size)
        self.source.partial.write_bytes(b"")
        self.digest, self.size = hashlib.sha256(), 0

    def reach_the_disk(self) -> None:
        """Wait until a crash of the machine cannot leave the file without its content."""
        with open(self.source.partial, "rb+") as file:
            os.fsync(file.fileno())

    def problem(self) -> str | None:
        """What is wrong with the file now that all of it should be here."""
        if self.size != self.source.size:
            return f"has {self.size:,} bytes instead of {self.source.size:,}"
        digest, known = self.digest.hexdigest(), self.source.remote.sha256 or ""
        expected = self.source.etag if SHA256.fullmatch(self.source.etag) else known
        if not digest.startswith(expected):
            return f"was damaged on the way (SHA-256 {digest[:10]} instead of {expected[:10]})"
        if not self.source.remote.is_weights:
            return None  # it has no header
        try:
            read_header(self.source.partial, DownloadError)
        except DownloadError as error:  # as published: fetching it again would bring the same
            self.source.partial.unlink()
            text = str(error).replace(printable(self.source.partial.name, 80), self.source.remote.name)
            raise DownloadError(f"{text} It was removed.") from error
        return None


def _move(part: _Part) -> None:
    """Fetch until the file is as long as it should be; broken connections are taken up again a few times."""
    failures = 0
    while part.size < part.source.size:
        before = part.size
        try:
            _stream(part)
            error = None
        except PASSING as reason:
            if isinstance(reason, HfHubHTTPError) and reason.response.status_code not in PASSING_STATUS:
                raise
            error = reason
        if part.size > before:
            failures = 0
        elif part.size < part.source.size:
            failures += 1
            if failures >= ATTEMPTS_WITHOUT_PROGRESS:
                raise error or DownloadError(f"The hub sends nothing of {part.source.remote.name}. Try again later.")
        if part.size < part.source.size:
            whole = in_words(part.source.size)
            part.watch.note(f"the connection broke at {in_words(part.size)} of {whole}; going on from there")
            _pause(FIRST_PAUSE * 2**failures, part.watch)


def _stream(part: _Part) -> None:
    """One request for all that is lacking."""
    answer = _with_beats(_answer(part.source, part.size), part.watch)
    if next(answer) is None:
        part.restart()  # the server does not serve the rest alone
    part.append(chunk for chunk in answer if chunk)


def _answer(source: Source, begin: int) -> Generator[bytes | None]:
    """What the server sends from byte `begin` on: first b"", or None when it will not begin there; then the content."""
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    if begin:
        headers["Range"] = f"bytes={begin}-"
    url = hf_hub_url(source.remote.repo, source.remote.path, revision=source.commit)
    with get_session().stream("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
        yield None if response.status_code == 416 or (begin and response.status_code == 200) else b""
        if response.status_code != 416:
            hf_raise_for_status(response)
            yield from response.iter_bytes()


def _with_beats(items: Generator[T], watch: Watch) -> Iterator[T]:
    """`items`, made in a thread of their own, so that `watch` is asked while the network is silent.

    Whatever making them raises is raised here. Once nobody takes them any more the thread ends with its next item, and
    with the network's own time limit at the latest.
    """
    made: queue.Queue[tuple[T] | BaseException | None] = queue.Queue(8)
    unwanted = threading.Event()

    def put(one: tuple[T] | BaseException | None) -> None:
        while not unwanted.is_set():
            with suppress(queue.Full):
                made.put(one, timeout=BEAT)
                return

    def work() -> None:
        try:
            with closing(items):
                for item in items:
                    put((item,))
                    if unwanted.is_set():
                        return
            put(None)
        except BaseException as error:  # noqa: BLE001 - raised again where the items are taken
            put(error)

    threading.Thread(target=work, daemon=True, name="download").start()
    try:
        while True:
            try:
                one = made.get(timeout=BEAT)
            except queue.Empty:
                watch.moved(0)
                continue
            if one is None:
                return
            if isinstance(one, BaseException):
                raise one
            yield one[0]
    finally:
        unwanted.set()


def _pause(seconds: float, watch: Watch) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        watch.moved(0)
        time.sleep(min(BEAT, left))


@contextmanager
def _locked(source: Source, watch: Watch) -> Generator[None]:
    """Keep other processes from fetching the same file; the cache's own lock."""
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(lock(source.folder.name, source.etag))
                break
            except Timeout:
                watch.say(f"another process is fetching {source.remote.name}; waiting for it")
        yield
