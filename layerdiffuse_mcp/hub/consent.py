"""What may be fetched without a question, and the question.

files = lacking(planned.downloads, settings)
if asks(files, ASK_ABOVE):
    agreed = ask(question(files))                # however the user is asked
check_licences(planned.downloads, settings)      # raises ConsentNeeded where nobody was asked
"""

import math
import shlex
from collections.abc import Iterable, Sequence

from layerdiffuse_mcp.api.plan import Download
from layerdiffuse_mcp.errors import ConsentNeeded
from layerdiffuse_mcp.families.entries import MB, HubFile, ModelEntry
from layerdiffuse_mcp.families.memory import in_16_bits
from layerdiffuse_mcp.families.registry import FAMILIES
from layerdiffuse_mcp.hub import catalog
from layerdiffuse_mcp.hub.libraries import check_libraries
from layerdiffuse_mcp.installed import program
from layerdiffuse_mcp.settings import Settings
from layerdiffuse_mcp.wording import in_words, printable

ASK_ABOVE = 100 * MB
"""Bytes that an explicit wish to prepare a model may fetch without a question."""
NOTHING, ANY_SIZE = -1, math.inf


def lacking(downloads: Iterable[Download], settings: Settings) -> list[HubFile]:
    """The files that downloads would fetch; looks at the disk, so it belongs in a thread.

    Raises:
        ModelNotFound: there is no such model, or what computes with it is not installed.
    """
    found: list[HubFile] = []
    for download in downloads:
        entry = catalog.find_any(download.model, settings)
        check_libraries(entry, settings)
        found += catalog.missing(entry, settings, download.methods)
    return list(dict.fromkeys(found))


def asks(files: Sequence[HubFile], free: float) -> bool:
    """Whether somebody has to be asked: it is more than `free` bytes, or not for commercial use."""
    size = sum(math.inf if file.bytes is None else file.bytes for file in files)
    return bool(files) and (size > free or any(not file.commercial for file in files))


def question(files: Sequence[HubFile]) -> str:
    """What a person is asked: which files, how much, from where, under which licences."""
    known = [file.bytes for file in files if file.bytes is not None]
    size = in_words(sum(known)) + (" or more" if len(known) < len(files) else "")
    repos = ", ".join(printable(repo, 200) for repo in dict.fromkeys(file.repo for file in files))
    licences = ", ".join(printable(name, 200) for name in dict.fromkeys(file.licence or "unknown" for file in files))
    names = ", ".join(printable(name, 200) for name in dict.fromkeys(file.name for file in files))
    text = f"Fetch {size} from {repos}: {names}? Licence: {licences}."
    return text if all(file.commercial for file in files) else f"{text} Not all of it is free for commercial use."


def takes(downloads: Iterable[Download], settings: Settings) -> str:
    """What drawing takes with the bases among them, in sentences; belongs in a thread."""
    entries = {download.model: catalog.find_any(download.model, settings) for download in downloads}
    said: list[str] = []
    for entry in entries.values():
        if isinstance(entry, ModelEntry) and entry.family and (memory := in_16_bits(FAMILIES[entry.family])):
            least, most = (in_words(bound(memory.values())) for bound in (min, max))
            time = f" and {entry.time}" if entry.time else ""
            said.append(f"A picture with {entry.name} takes {least} to {most} of GPU memory{time}, as computed.")
    return " ".join(said)


def check_licences(downloads: Iterable[Download], settings: Settings) -> None:
    """Make sure that nothing is fetched unasked that is not for commercial use; belongs in a thread.

    Raises:
        ConsentNeeded: naming the command by which a person fetches it.
    """
    for download in downloads:
        for file in lacking([download], settings):
            if not file.commercial:
                raise ConsentNeeded(
                    f"{printable(file.name, 200)} is under the licence {printable(file.licence or '', 200)}, which is "
                    "not free for commercial use: it comes when its user says yes, and could not be asked here. "
                    f"Nothing was fetched. In a terminal, `{program()} models prepare "
                    f"{shlex.quote(download.model)}` asks. Or name another model."
                )
