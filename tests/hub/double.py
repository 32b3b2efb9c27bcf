"""A model hub on 127.0.0.1: the real one's API shape, for as long as a test runs.

    with Hub() as hub:
        hub.add("someone/something", "base.safetensors", content)
        hub.faults.append(Break(after=1000))       # each request for content takes the next fault, if there is one
        ...
        hub.requests                               # what was asked
    hub.move("someone/something", "base.safetensors", other)   # a new commit; the ones before can still be asked for

Metadata and files are resolved at `hub.url`; large files are redirected to a second server of another origin, as the
hub redirects to its store. Small files (`lfs=False`) are served in place.
"""

import hashlib
import json
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass(frozen=True)
class Break:
    """The connection breaks after so many bytes of the answer's body."""

    after: int


@dataclass(frozen=True)
class Status:
    """The answer is this status and nothing else."""

    code: int


@dataclass(frozen=True)
class Damage:
    """The answer's body has a wrong byte."""


@dataclass(frozen=True)
class Whole:
    """The server does not know ranges: it sends all of the file."""


@dataclass(frozen=True)
class Slow:
    """The body comes in pieces of so many bytes, with a pause before each."""

    piece: int
    pause: float


Fault = Break | Status | Damage | Whole | Slow


@dataclass(frozen=True)
class Asked:
    """A request that was made."""

    server: str
    method: str
    path: str
    range: str | None
    token: str | None


@dataclass
class Repo:
    files: dict[str, tuple[bytes, bool]] = field(default_factory=dict)
    gated: bool = False
    private_to: str | None = None
    commit: str = COMMIT
    past: dict[str, dict[str, tuple[bytes, bool]]] = field(default_factory=dict)

    def at(self, revision: str) -> dict[str, tuple[bytes, bool]] | None:
        return self.files if revision in ("main", self.commit) else self.past.get(revision)


class Hub:
    """The two servers and what they hold."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.faults: deque[Fault] = deque()
        self.requests: list[Asked] = []
        self.status: int | None = None
        """Answer every request for metadata with this."""
        self.valid_tokens = {"hf_valid"}
        self.talks = threading.Event()
        """Cleared, both servers take requests and are silent."""
        self.talks.set()

    def __enter__(self) -> "Hub":
        self._servers = [_Server(self, "hub", _resolve), _Server(self, "store", _content)]
        self.url, self.store_url = (server.url for server in self._servers)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.talks.set()
        for server in self._servers:
            server.stop()

    def add(self, repo: str, path: str, content: bytes, *, lfs: bool = True) -> None:
        """Put a file into a repository."""
        self.repos.setdefault(repo, Repo()).files[path] = (content, lfs)

    def move(self, repo: str, path: str, content: bytes) -> None:
        """Make a commit that changes or adds a file: `main` is another one from now on."""
        moved = self.repos[repo]
        moved.past[moved.commit] = dict(moved.files)
        moved.commit = hashlib.sha1(content).hexdigest()
        self.add(repo, path, content)

    def blob(self, digest: str) -> bytes | None:
        """The content with that SHA-256."""
        commits = (files for repo in self.repos.values() for files in (repo.files, *repo.past.values()))
        contents = (content for files in commits for content, _ in files.values())
        return next((content for content in contents if sha256(content) == digest), None)

    def asked(self, server: str, method: str = "GET") -> list[Asked]:
        """The requests of one kind, in order."""
        return [one for one in self.requests if (one.server, one.method) == (server, method)]


def sha256(content: bytes) -> str:
    """The checksum that the hub names a large file by."""
    return hashlib.sha256(content).hexdigest()


class _Server:
    def __init__(self, hub: Hub, name: str, answer: Callable[[Hub, "_Handler"], None]) -> None:
        handler = type("Handler", (_Handler,), {"hub": hub, "server_name": name, "answer": staticmethod(answer)})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub
    server_name: str
    answer: Callable[[Hub, "_Handler"], None]

    def do_GET(self) -> None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        self.hub.requests.append(
            Asked(self.server_name, self.command, unquote(self.path), self.headers.get("Range"), token)
        )
        self.token = token
        self.hub.talks.wait()
        try:
            self.answer(self.hub, self)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def reply(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        body = json.dumps({"error": message}).encode()
        self.reply(status, {"X-Error-Code": code, "X-Error-Message": message, **(headers or {})}, body)

    def send_content(self, content: bytes, headers: dict[str, str]) -> None:
        """A file's content or the range asked for, with whatever fault is due."""
        fault = self.hub.faults.popleft() if self.hub.faults and self.command == "GET" else None
        if isinstance(fault, Status):
            self.reply(fault.code)
            return
        begin = 0
        asked = self.headers.get("Range")
        if asked and not isinstance(fault, Whole):
            begin = int(asked.removeprefix("bytes=").split("-")[0])
            if begin >= len(content):
                self.reply(416, {"Content-Range": f"bytes */{len(content)}"})
                return
            headers = {**headers, "Content-Range": f"bytes {begin}-{len(content) - 1}/{len(content)}"}
        body = content[begin:]
        if isinstance(fault, Damage):
            body = body[:-1] + bytes([body[-1] ^ 1])
        self.send_response(206 if "Content-Range" in headers else 200)
        for name, value in {"Content-Length": str(len(body)), "Accept-Ranges": "bytes", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if isinstance(fault, Break):
            self.wfile.write(body[: fault.after])
            self.wfile.flush()
            self.close_connection = True
        elif isinstance(fault, Slow):
            for place in range(0, len(body), fault.piece):
                time.sleep(fault.pause)
                self.wfile.write(body[place : place + fault.piece])
        else:
            self.wfile.write(body)


def _resolve(hub: Hub, request: _Handler) -> None:
    """`/api/models/REPO` and `/REPO/resolve/REVISION/PATH`."""
    if hub.status is not None:
        request.reply(hub.status)
        return
    path = unquote(request.path).lstrip("/")
    name, _, rest = path.removeprefix("api/models/").partition("/resolve/")
    repo = hub.repos.get(name)
    if request.token is not None and request.token not in hub.valid_tokens:
        request.refuse(401, "", "Invalid credentials in Authorization header")
    elif repo is None or (repo.private_to and repo.private_to != request.token):
        request.refuse(404 if request.token else 401, "RepoNotFound", "Repository not found")
    elif path.startswith("api/models/"):
        files = [{"rfilename": file} for file in repo.files]
        facts = {"id": name, "sha": repo.commit, "siblings": files, "gated": "auto" if repo.gated else False}
        request.reply(200, {"Content-Type": "application/json"}, json.dumps(facts).encode())
    elif repo.gated:
        request.refuse(403 if request.token else 401, "GatedRepo", f"Access to model {name} is restricted")
    else:
        revision, _, file = rest.partition("/")
        _resolve_file(hub, request, repo, revision, file)


def _resolve_file(hub: Hub, request: _Handler, repo: Repo, revision: str, path: str) -> None:
    commit = {"X-Repo-Commit": repo.commit if revision == "main" else revision}
    files = repo.at(revision)
    if files is None:
        request.refuse(404, "RevisionNotFound", "Revision not found")
        return
    if path not in files:
        request.refuse(404, "EntryNotFound", "Entry not found", commit)
        return
    content, lfs = files[path]
    digest = sha256(content)
    if not lfs:
        request.send_content(content, {**commit, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'})
        return
    linked = {"X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{digest}"'}
    request.reply(302, {**commit, **linked, "Location": f"{hub.store_url}/{digest}"})


def _content(hub: Hub, request: _Handler) -> None:
    """`/DIGEST`, as the redirect of a large file names it."""
    content = hub.blob(request.path.lstrip("/"))
    if content is None:
        request.reply(404)
    else:
        request.send_content(content, {"ETag": f'"{request.path.lstrip("/")}"'})
