"""Which models there are, where they come from, and where they lie on this machine.

Three sources: the pocket model inside the package, the official files (bases that the
authors used and the fourteen released layer files), and whatever `.safetensors` bases a
user drops into the models folder. Nothing here fetches anything or imports torch.

    entry = find("pocket", settings)
    path = layer_file(entry, "layer_sd15_transparent_attn.safetensors", settings)

Facts on the release: the listing of `LayerDiffusion/layerdiffusion-v1` on the model hub.
"""

import functools
from importlib import resources
from pathlib import Path

from layerdiffuse_mcp.errors import ModelError, ModelNotFound
from layerdiffuse_mcp.methods import METHODS, ROUTES, TRANSPARENCY_FILES, Family, Task
from layerdiffuse_mcp.outcome import Frozen
from layerdiffuse_mcp.requests import near
from layerdiffuse_mcp.settings import Settings

MB, GB = 10**6, 10**9
LAYER_REPO = "LayerDiffusion/layerdiffusion-v1"
LAYER_LICENCE = "creativeml-openrail-m"
POCKET = "pocket"


class RemoteFile(Frozen):
    """A file on the model hub. `sha256` may be a prefix: as much of it as is publicly known."""

    repo: str
    path: str
    bytes: int | None = None
    sha256: str | None = None
    licence: str


class ModelEntry(Frozen):
    """A base model by name. `path` is set once its file is on this machine."""

    name: str
    family: Family | None
    description: str
    native_size: int
    licence: str | None = None
    path: Path | None = None
    remote: RemoteFile | None = None
    bytes: int | None = None

    @property
    def prepared(self) -> bool:
        """Whether the base can be loaded without fetching anything."""
        return self.path is not None


NATIVE_SIZE: dict[Family, int] = {"sd15": 512, "sdxl": 1024}

_LAYER_FILES: dict[str, tuple[int, str | None]] = {
    "layer_xl_transparent_attn.safetensors": (743 * MB, "b7919c5b"),
    "layer_xl_transparent_conv.safetensors": (3620 * MB, "5ee958d8"),
    "layer_xl_fg2ble.safetensors": (702 * MB, None),
    "layer_xl_bg2ble.safetensors": (702 * MB, None),
    "layer_xl_fgble2bg.safetensors": (702 * MB, None),
    "layer_xl_bgble2fg.safetensors": (3620 * MB, None),
    "vae_transparent_encoder.safetensors": (2_370_000, None),
    "vae_transparent_decoder.safetensors": (208 * MB, None),
    "layer_sd15_transparent_attn.safetensors": (350 * MB, "cc9ee874"),
    "layer_sd15_joint.safetensors": (554 * MB, None),
    "layer_sd15_fg2bg.safetensors": (563 * MB, None),
    "layer_sd15_bg2fg.safetensors": (563 * MB, None),
    "layer_sd15_vae_transparent_encoder.safetensors": (2_370_000, None),
    "layer_sd15_vae_transparent_decoder.safetensors": (208 * MB, None),
}

LAYER_FILES: dict[str, RemoteFile] = {
    name: RemoteFile(repo=LAYER_REPO, path=name, bytes=size, sha256=sha256, licence=LAYER_LICENCE)
    for name, (size, sha256) in _LAYER_FILES.items()
}
"""The fourteen released layer files by name."""

_BASES = (
    ModelEntry(
        name="juggernaut-xl-v6", family="sdxl", native_size=1024, licence="creativeml-openrail-m",
        description="Photographic SDXL base; the authors' own examples were drawn with it",
        remote=RemoteFile(
            repo="RunDiffusion/Juggernaut-XL-v6", path="juggernautXL_version6Rundiffusion.safetensors",
            sha256="1fe6c7ec54", licence="creativeml-openrail-m",
        ),
    ),
    ModelEntry(
        name="realvisxl-v4", family="sdxl", native_size=1024, licence="openrail++",
        description="Photographic SDXL base, used by the authors' diffusers release",
        remote=RemoteFile(
            repo="SG161222/RealVisXL_V4.0", path="RealVisXL_V4.0.safetensors", licence="openrail++",
        ),
    ),
    ModelEntry(
        name="realistic-vision-v51", family="sd15", native_size=512, licence="creativeml-openrail-m",
        description="Photographic SD1.5 base with its VAE; used by the authors for the SD1.5 layer files",
        remote=RemoteFile(
            repo="lllyasviel/fav_models", path="fav/realisticVisionV51_v51VAE.safetensors",
            sha256="15012c538f", licence="creativeml-openrail-m",
        ),
    ),
)  # fmt: skip


def pocket_folder() -> Path:
    """The folder of the embedded model inside the installed package."""
    return Path(str(resources.files("layerdiffuse_mcp") / POCKET))


def models(settings: Settings) -> list[ModelEntry]:
    """All models there are to choose from: the embedded one, the official bases, the user's own."""
    pocket = pocket_folder() / "pocket.safetensors"
    embedded = ModelEntry(
        name=POCKET, family="sd15", native_size=128, licence="Apache-2.0", path=pocket, bytes=pocket.stat().st_size,
        description="Small model inside the package: emoji-like subjects at 128 px in seconds on a CPU",
    )  # fmt: skip
    official = [_located(entry, settings) for entry in _BASES]
    known = {entry.path for entry in official}
    return [embedded, *official, *(own for own in _own_bases(settings) if own.path not in known)]


def find(name: str | None, settings: Settings) -> ModelEntry:
    """The model of that name, or the default one.

    Raises:
        ModelNotFound: no model has that name; the near names are listed.
    """
    entries = models(settings)
    wanted = name or settings.model
    if wanted == "auto":
        return next((entry for entry in entries if entry.prepared and entry.name != POCKET), entries[0])
    for entry in entries:
        if entry.name == wanted:
            return entry
    raise ModelNotFound(f"There is no model {wanted!r}. {near(wanted, [entry.name for entry in entries])}")


def layer_file(entry: ModelEntry, name: str, settings: Settings) -> Path:
    """Where the layer or transparency file `name` for that base lies on this machine.

    Raises:
        ModelNotFound: it is not there; the message says how large it is and how to prepare it.
    """
    if entry.name == POCKET:
        path = pocket_folder() / name
        if path.is_file():
            return path
        method = METHODS.get(name.removesuffix(".safetensors"))
        what = f"the layer file for '{method.title}'" if method else name
        raise ModelNotFound(
            f"The embedded pocket model has no {name} ({what}). Prepare a real base for it, "
            f"for example: layerdiffuse-mcp models prepare {entry.family}."
        )
    path = _on_disk(LAYER_FILES[name], settings)
    if path is None:
        remote = LAYER_FILES[name]
        raise ModelNotFound(
            f"{name} ({(remote.bytes or 0) / GB:.2f} GB, {remote.repo}) is not on this machine. Fetch it from that "
            f"hub repository into {settings.models_dir}, then repeat the call."
        )
    return path


def base_file(entry: ModelEntry, settings: Settings) -> Path:
    """Where the base itself lies; raises ModelNotFound as `layer_file` does."""
    if entry.path is not None:
        return entry.path
    assert entry.remote is not None  # an entry has a path or a source
    raise ModelNotFound(
        f"The model {entry.name} is not on this machine. Fetch {entry.remote.path} from the hub repository "
        f"{entry.remote.repo} into {settings.models_dir}, or use model='pocket'."
    )


def tasks(entry: ModelEntry, settings: Settings) -> dict[Task, bool]:
    """What the base's family can do, and whether every layer file for it is on this machine."""
    ready: dict[Task, bool] = {}
    for (task, family), route in ROUTES.items():
        if family == entry.family:
            names = [METHODS[method].file for method in route] + list(TRANSPARENCY_FILES[family].values())
            ready[task] = all(_has(entry, name, settings) for name in names)
    return ready


def _has(entry: ModelEntry, name: str, settings: Settings) -> bool:
    try:
        layer_file(entry, name, settings)
    except ModelNotFound:
        return False
    return True


def _located(entry: ModelEntry, settings: Settings) -> ModelEntry:
    path = _on_disk(entry.remote, settings) if entry.remote else None
    return entry.model_copy(update={"path": path, "bytes": path.stat().st_size}) if path else entry


def _on_disk(remote: RemoteFile, settings: Settings) -> Path | None:
    own = settings.models_dir / Path(remote.path).name
    if own.is_file():
        return own
    from huggingface_hub import try_to_load_from_cache  # heavy: only when a real model is asked for

    cached = try_to_load_from_cache(remote.repo, remote.path)
    return Path(cached) if isinstance(cached, str) else None


def _own_bases(settings: Settings) -> list[ModelEntry]:
    if not settings.models_dir.is_dir():
        return []
    found: list[ModelEntry] = []
    for path in sorted(settings.models_dir.rglob("*.safetensors")):
        family = _family(path, path.stat().st_mtime_ns)
        if family is not None:
            found.append(
                ModelEntry(
                    name=path.stem,
                    family=family,
                    native_size=NATIVE_SIZE[family],
                    path=path,
                    bytes=path.stat().st_size,
                    description=f"Your own base, {path.name}",
                )
            )
    return found


@functools.lru_cache(maxsize=1024)
def _family(path: Path, changed: int) -> Family | None:
    """The family of a base by its header, or None for any other file; cached until the file changes."""
    from layerdiffuse_mcp.engine.identify import identify
    from layerdiffuse_mcp.engine.tensorfile import TensorFile

    try:
        file = TensorFile(path)
    except ModelError:
        return None
    return identify(file.shapes, file.metadata).family
