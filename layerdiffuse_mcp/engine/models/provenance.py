"""Which files a picture was drawn with: their versions as they are read, their checksums when a recipe wants them.

provenance = Provenance(hashes, base=version)
provenance.note("layer_xl_fg2ble.safetensors", version)    # was read: its checksum begins in the background
provenance.identify(["layer_xl_fg2ble.safetensors"], report)     # {"model": "1fe6c7ec54", "layer_...": "..."}
"""

from collections.abc import Callable, Collection, Mapping, Sequence

from layerdiffuse_mcp.hub.hashes import BackgroundHashes
from layerdiffuse_mcp.hub.versions import FileVersion
from layerdiffuse_mcp.recipes.recipe import BASE


class Provenance:
    """The files that one model reads. base: the base's file, None where it is a folder."""

    def __init__(self, hashes: BackgroundHashes | None = None, base: FileVersion | None = None) -> None:
        self._hashes = hashes or BackgroundHashes()
        self._base = base
        self._read: dict[str, FileVersion] = {}
        self._used: set[str] = set()
        self._loras: tuple[FileVersion, ...] = ()
        self._inversions: tuple[FileVersion, ...] = ()
        self._additions: dict[str, FileVersion | None] = {}

    def begin(self) -> None:
        """Another task begins: what it uses is told from here on."""
        self._used.clear()

    def use(self, name: str) -> None:
        """A layer or transparency file is used, whenever it was read."""
        self._used.add(name)

    def note(self, name: str, version: FileVersion) -> None:
        """A layer or transparency file was read; `name` is its published one."""
        self._read[name] = version
        self._hashes.start(version)

    def note_loras(self, versions: Sequence[FileVersion]) -> None:
        """These LoRAs are on the base now, and no others."""
        self._loras = tuple(versions)
        self._hashes.start(*versions)

    def note_inversions(self, versions: Sequence[FileVersion]) -> None:
        """The prompts name these textual inversions now, and no others."""
        self._inversions = tuple(versions)
        self._hashes.start(*versions)

    def note_additions(self, versions: Mapping[str, FileVersion | None]) -> None:
        """These networks are beside the base now, by name, and no others; None where one is several files."""
        self._additions = dict(versions)
        self._hashes.start(*(version for version in versions.values() if version))

    def identify(self, names: Collection[str], report: Callable[[str], None]) -> dict[str, str | None]:
        """The SHA-256 of the base, as `BASE`, of `names` where they were used, of LoRAs, inversions and additions.

        None for a folder, and for a file that was replaced meanwhile. What has not been read for its checksum yet is
        waited for, and `report` told so; raising from it ends that.
        """
        used = {name: version for name, version in self._read.items() if name in names and name in self._used}
        used |= {version.path.name: version for version in (*self._loras, *self._inversions)}
        return {
            name: version and self._hashes.sha256(version, report)
            for name, version in {BASE: self._base, **used, **self._additions}.items()
        }
