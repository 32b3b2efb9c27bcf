"""Tokens: who may use a server over HTTP, where each one's pictures lie, and how much each may ask for at once.

    tokens = guarding(None, settings)       # of the file that `tokens_file` names: {"anna": Token(...)}
    await tokens.look()                     # before each request: as the file is now
    name_of(tokens, "what a request said")  # "anna", or None
    own_settings("anna", tokens["anna"], settings)

The file is JSON if its name ends so, else TOML: a table for each name. It holds hashes alone; `layerdiffuse-mcp token`
makes a token and prints its entry. What an entry leaves out is as the settings say, but for the folders.

    [anna]
    sha256 = "2bb80d53...c4"               # of the token
    output_dir = "/srv/pictures/anna"      # default: anna/ in the server's output folder
    read_dirs = ["/srv/brand"]             # beside the output folder; default: none
    queue_size = 8
    queue_pixels = 8_000_000
    metrics = true                         # it may read /metrics; default: no
"""

import hashlib
import json
import logging
import os
import re
import secrets
import stat
import tempfile
import tomllib
from collections.abc import Awaitable, Callable, Iterator, Mapping
from itertools import permutations
from pathlib import Path
from typing import Annotated

import anyio
import anyio.to_thread
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from layerdiffuse_mcp.api.fields import explain
from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.images.files import open_regular
from layerdiffuse_mcp.settings import Folder, Folders, QueuePixels, QueueSize, Settings, variable
from layerdiffuse_mcp.wording import printable

TOKEN = re.compile(r"[!-~]{16,}")
"""What a header can carry and nobody guesses."""
RANDOM_BYTES = 32
LARGEST = 1_000_000
"""Bytes of a file of tokens."""
NAME = r"^[a-z0-9][a-z0-9_-]{0,39}$"
"""What a name looks like: it is also that of a folder."""


class Token(BaseModel):
    """What the holder of a token may do; `sha256` is of the token, in hex digits."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    output_dir: Folder | None = None
    read_dirs: Folders = ()
    queue_size: QueueSize | None = None
    queue_pixels: QueuePixels | None = None
    metrics: bool = False


Tokens = Mapping[str, Token]
_FILE: TypeAdapter[dict[str, Token]] = TypeAdapter(dict[Annotated[str, StringConstraints(pattern=NAME)], Token])

logger = logging.getLogger(__name__)


class Guard(Mapping[str, Token]):
    """The tokens that let somebody in now, by their names.

    Args:
        tokens: those of the start.
        settings: they name the file that is read again when it has changed; none where the tokens come from elsewhere.

    `admit` is called with new tokens before they count. `refused`: the file as it is now cannot be used, and the tokens
    are those that it had before.
    """

    def __init__(self, tokens: Tokens, settings: Settings | None = None) -> None:
        self._tokens = tokens
        self._settings = settings
        self._seen: tuple[int, ...] | None = None
        self._looking = anyio.Lock()
        self.admit: Callable[[Tokens], Awaitable[object]] | None = None
        self.refused = False

    def __getitem__(self, name: str) -> Token:
        return self._tokens[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tokens)

    def __len__(self) -> int:
        return len(self._tokens)

    async def look(self) -> None:
        """Read the file again if it has changed; everybody waits for that."""
        if self._settings is None or self._settings.tokens_file is None:
            return
        async with self._looking:
            if (found := _version(self._settings.tokens_file)) == self._seen:
                return
            try:
                tokens = await anyio.to_thread.run_sync(read_tokens, self._settings)
                if self.admit is not None:
                    await self.admit(tokens)
            except InvalidRequest as error:
                logger.error("%s The tokens are those that it had before.", error)
                self.refused = True
            else:
                self._tokens, self.refused = tokens, False
            self._seen = found


def _version(file: Path) -> tuple[int, ...]:
    """What changes with a file; nothing of one that is not there."""
    try:
        found = os.stat(file)
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_ino, found.st_size, found.st_mode


def new_token() -> str:
    """A token that nobody guesses."""
    return secrets.token_urlsafe(RANDOM_BYTES)


def hash_of(token: str) -> str:
    """The SHA-256 of a token."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def guarding(token: str | None, settings: Settings) -> Guard:
    """The tokens that guard a server: those of the settings' file, or a single one, which has no name; or none.

    Raises:
        InvalidRequest: both are given, the single one guards nothing, or the file cannot be used.
    """
    if token is None:
        return Guard({} if settings.tokens_file is None else read_tokens(settings), settings)
    if settings.tokens_file is not None:
        raise InvalidRequest(f"Give either --token or {variable('tokens_file')}: the file has the tokens of all.")
    if not TOKEN.fullmatch(token):
        raise InvalidRequest("A token has 16 characters or more, of letters, digits and signs, without spaces.")
    return Guard({"": Token(sha256=hash_of(token), metrics=True)})


def name_of(tokens: Tokens, given: str) -> str | None:
    """Whose token a request gave; it takes as long whichever it is."""
    digest = hash_of(given)
    found = [name for name, token in tokens.items() if secrets.compare_digest(token.sha256, digest)]
    return found[0] if found and TOKEN.fullmatch(given) else None


def read_tokens(settings: Settings) -> dict[str, Token]:
    """The tokens of the file that the settings name, by their names.

    Raises:
        InvalidRequest: it cannot be read, others may write it, an entry is wrong, two are of one token, or what one
            may read holds another's pictures.
    """
    file = settings.tokens_file
    assert file is not None
    try:
        tokens = _FILE.validate_python(_parsed(file))
    except OSError as error:
        raise _unusable(file, f"cannot be read ({error.strerror or error})") from None
    except ValidationError as error:
        raise _unusable(file, f"has a wrong entry: {explain(error)}") from None
    except ValueError as error:
        raise _unusable(file, f"is no {'JSON' if file.suffix == '.json' else 'TOML'}: {error}") from None
    if not tokens:
        raise _unusable(file, "has no entry")
    if len({token.sha256 for token in tokens.values()}) < len(tokens):
        raise _unusable(file, "has two entries of one token")
    _check_apart(file, {name: own_settings(name, token, settings) for name, token in tokens.items()})
    return tokens


def own_settings(name: str, token: Token, settings: Settings) -> Settings:
    """The settings that hold for whoever has the token."""
    output = token.output_dir or settings.output / name
    given = token.model_dump(include={"queue_size", "queue_pixels"}, exclude_none=True)
    own = {"output_dir": output, "read_dirs": (*token.read_dirs, output)}
    return settings.model_copy(update=given | own)


def _parsed(file: Path) -> object:
    with open_regular(file) as opened:
        if os.name == "posix" and stat.S_IMODE(os.fstat(opened.fileno()).st_mode) & 0o022:
            raise _unusable(file, "can be changed by other users, who could let anybody in: run chmod go-w on it")
        text = opened.read(LARGEST).decode()
    return json.loads(text) if file.suffix == ".json" else tomllib.loads(text)


def _check_apart(file: Path, own: Mapping[str, Settings]) -> None:
    """See that nobody's folders hold another's pictures, or the copies that the server keeps of given ones."""
    for (one, its), (other, others) in permutations(own.items(), 2):
        output = others.output.resolve()
        for folder in its.readable:
            if output.is_relative_to(folder.resolve()) or folder.resolve().is_relative_to(output):
                raise _unusable(file, f"lets {one} read {printable(folder)}, where pictures of {other} lie")
    for name, its in own.items():
        for folder in its.readable:
            if Path(tempfile.gettempdir()).resolve().is_relative_to(folder.resolve()):
                raise _unusable(file, f"lets {name} read {printable(folder)}, where this machine keeps temporary files")


def _unusable(file: Path, why: str) -> InvalidRequest:
    return InvalidRequest(f"The file of tokens, {printable(file)} ({variable('tokens_file')}), {why}.")
