"""One file from the model hub into the hub's own cache: resumable, verified, visible only when it is whole.

    source = look_up(remote)                 # asks the hub: commit, checksum, size
    path = fetch(source, watch)

`huggingface_hub` knows the endpoint, the token, the cache and offline mode, and makes the cache entry. The bytes
are moved here, because its own download throws away what it has when it is stopped: a partial file stays beside the
cache's files as `<checksum>.incomplete` and the next call goes on from there. A file enters the cache after its
SHA-256 and its header have been checked, so whatever the cache shows can be used.
"""

import hashlib
import re
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import httpx2
from filelock import Timeout
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import WeakFileLock, build_hf_headers, get_session, hf_raise_for_status

from layerdiffuse_mcp.errors import DownloadError
from layerdiffuse_mcp.hub.entries import RemoteFile, in_words
from layerdiffuse_mcp.hub.headers import HASH_CHUNK, read_header

SHA256 = re.compile(r"[0-9a-f]{64}")
ATTEMPTS_WITHOUT_PROGRESS = 5
FIRST_PAUSE = 1.0
"""Seconds before the first new attempt; each further one waits twice as long."""
BEAT = 0.2
PASSING_STATUS = frozenset({408, 429, 500, 502, 503, 504})
PASSING = (httpx2.TransportError, HfHubHTTPError)


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

    remote: RemoteFile
    commit: str
    etag: str
    """Its checksum: SHA-256 for a large file, which any weight file is."""
    size: int

    @property
    def blob(self) -> Path:
        """Where the cache keeps its content."""
        folder = repo_folder_name(repo_id=self.remote.repo, repo_type="model")
        return Path(constants.HF_HUB_CACHE) / folder / "blobs" / self.etag

    @property
    def partial(self) -> Path:
        """Where the part of it is kept that has been fetched so far."""
        return self.blob.with_name(f"{self.etag}.incomplete")

    @property
    def here(self) -> int:
        """Bytes of it that are on this machine already."""
        return next((min(path.stat().st_size, self.size) for path in (self.blob, self.partial) if path.is_file()), 0)


def look_up(remote: RemoteFile) -> Source:
    """Ask the hub for a file's commit, checksum and size.

    Raises:
        DownloadError: what the hub has is not the file that is known by that name, or not a weight file.
        HfHubHTTPError, TransportError, OSError: see `download.py`, which puts them into words.
    """
    if not remote.path.endswith(".safetensors"):
        raise DownloadError(f"{remote.path} is not fetched: only .safetensors files are; others can run code.")
    url = hf_hub_url(remote.repo, remote.path)
    facts = get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    if facts.commit_hash is None or facts.etag is None or facts.size is None:
        raise DownloadError(
            f"{constants.ENDPOINT} does not answer like a model hub for {remote.path}: commit, checksum or size is "
            "missing. Check HF_ENDPOINT and your proxy."
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
        DownloadError: it was damaged twice in a row, or is no safetensors file.
        HfHubHTTPError, TransportError, OSError: as `look_up`; and whatever `watch` raises.
    """
    source.blob.parent.mkdir(parents=True, exist_ok=True)
    with _locked(source, watch):
        if not source.blob.is_file():
            problem = _moved_and_checked(source, watch)
            if problem:
                watch.note(f"{source.remote.name} {problem}; it was removed and is fetched again")
                problem = _moved_and_checked(source, watch)
            if problem:
                raise DownloadError(
                    f"{source.remote.name} {problem}, twice in a row, and was removed. Try again later; if it "
                    f"stays so, a proxy or mirror between here and {constants.ENDPOINT} may be damaging it."
                )
            source.partial.replace(source.blob)
    path = Path(hf_hub_download(source.remote.repo, source.remote.path))
    if not path.is_symlink():
        source.blob.unlink(missing_ok=True)  # without links the cache keeps a copy: one is enough
    return path


def discard(path: Path) -> None:
    """Remove a file of the cache, and the content that it links to."""
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _moved_and_checked(source: Source, watch: Watch) -> str | None:
    """Fetch what is lacking and check the whole; a file with a problem is removed, and the problem returned."""
    part = _Part(source, watch)
    _move(part)
    problem = part.problem()
    if problem:
        watch.moved(-part.size)
        source.partial.unlink()
    return problem


class _Part:
    """The partial file and the checksum of what is in it."""

    def __init__(self, source: Source, watch: Watch) -> None:
        self.source, self.watch = source, watch
        self.digest = hashlib.sha256()
        self.size = 0
        if source.partial.is_file() and source.partial.stat().st_size > source.size:
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

    def problem(self) -> str | None:
        """What is wrong with the file now that all of it should be here."""
        if self.size != self.source.size:
            return f"has {self.size:,} bytes instead of {self.source.size:,}"
        digest, known = self.digest.hexdigest(), self.source.remote.sha256 or ""
        expected = self.source.etag if SHA256.fullmatch(self.source.etag) else known
        if not digest.startswith(expected):
            return f"was damaged on the way (SHA-256 {digest[:10]} instead of {expected[:10]})"
        try:
            read_header(self.source.partial, DownloadError)
        except DownloadError as error:  # as published: fetching it again would bring the same
            self.source.partial.unlink()
            text = str(error).replace(self.source.partial.name, self.source.remote.name)
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
    source = part.source
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    if part.size:
        headers["Range"] = f"bytes={part.size}-"
    url = hf_hub_url(source.remote.repo, source.remote.path, revision=source.commit)
    with get_session().stream("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
        if response.status_code == 416 or (part.size and response.status_code == 200):
            part.restart()  # the server does not serve the rest alone
            if response.status_code == 416:
                return
        hf_raise_for_status(response)
        part.append(response.iter_bytes())


def _pause(seconds: float, watch: Watch) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        watch.moved(0)
        time.sleep(min(BEAT, left))


@contextmanager
def _locked(source: Source, watch: Watch) -> Generator[None]:
    """Keep other processes from fetching the same file; the cache's own lock."""
    folder = repo_folder_name(repo_id=source.remote.repo, repo_type="model")
    lock = Path(constants.HF_HUB_CACHE) / ".locks" / folder / f"{source.etag}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(WeakFileLock(lock, timeout=BEAT))
                break
            except Timeout:
                watch.say(f"another process is fetching {source.remote.name}; waiting for it")
        yield
