"""The published files: the bases that LayerDiffuse's authors used, the fourteen layer files, re-packed siblings.

Facts on the release: the listings of the repositories named below. Sizes are rounded; those of the bases are what such
files have (the hub tells the exact one before anything is fetched). A base's short hash is that of the authors' file
in A1111's notation: it names the model, and the hub's own checksum is what a download is verified against.
"""

from layerdiffuse_mcp.hub.entries import MB, ModelEntry, RemoteFile
from layerdiffuse_mcp.methods import Family

LAYER_REPO = "LayerDiffusion/layerdiffusion-v1"
OPENRAIL_M = "creativeml-openrail-m"
NATIVE_SIZE: dict[Family, int] = {"sd15": 512, "sdxl": 1024}

_SIZES: dict[str, tuple[int, str | None]] = {
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
    name: RemoteFile(repo=LAYER_REPO, path=name, bytes=size, sha256=sha256, licence=OPENRAIL_M)
    for name, (size, sha256) in _SIZES.items()
}
"""The fourteen released layer files by name."""

_REPACKED = (
    ("lllyasviel/LayerDiffuse_Diffusers", "openrail", {
        "layer_xl_transparent_attn.safetensors": "ld_diffusers_sdxl_attn.safetensors",
        "layer_xl_transparent_conv.safetensors": "ld_diffusers_sdxl_conv.safetensors",
        "vae_transparent_encoder.safetensors": "ld_diffusers_sdxl_vae_transparent_encoder.safetensors",
        "vae_transparent_decoder.safetensors": "ld_diffusers_sdxl_vae_transparent_decoder.safetensors",
    }),
    ("rootonchair/diffuser_layerdiffuse", "mit", {
        f"layer_xl_{method}.safetensors": f"diffuser_layer_xl_{method}.safetensors"
        for method in ("transparent_attn", "transparent_conv", "fg2ble", "bg2ble", "fgble2bg", "bgble2fg")
    }),
)  # fmt: skip

SIBLINGS: dict[str, tuple[RemoteFile, ...]] = {
    official: tuple(
        RemoteFile(repo=repo, path=names[official], licence=licence)
        for repo, licence, names in _REPACKED
        if official in names
    )
    for official in LAYER_FILES
}
"""Files that hold the same weights in another layout, by the official name; used where they already are."""

BASES = (
    ModelEntry(
        name="juggernaut-xl-v6", family="sdxl", native_size=1024, licence=OPENRAIL_M, bytes=7110 * MB,
        description="Photographic SDXL base; the authors' own examples were drawn with it",
        aliases=("juggernautXL_version6Rundiffusion", "1fe6c7ec54"),
        remote=RemoteFile(
            repo="RunDiffusion/Juggernaut-XL-v6", path="juggernautXL_version6Rundiffusion.safetensors",
            bytes=7110 * MB, licence=OPENRAIL_M,
        ),
    ),
    ModelEntry(
        name="realvisxl-v4", family="sdxl", native_size=1024, licence="openrail++", bytes=6940 * MB,
        description="Photographic SDXL base, used by the authors' diffusers release",
        aliases=("RealVisXL_V4.0",),
        remote=RemoteFile(
            repo="SG161222/RealVisXL_V4.0", path="RealVisXL_V4.0.safetensors", bytes=6940 * MB, licence="openrail++",
        ),
    ),
    ModelEntry(
        name="realistic-vision-v51", family="sd15", native_size=512, licence=OPENRAIL_M, bytes=2130 * MB,
        description="Photographic SD1.5 base with its VAE; used by the authors for the SD1.5 layer files",
        aliases=("realisticVisionV51_v51VAE", "15012c538f"),
        remote=RemoteFile(
            repo="lllyasviel/fav_models", path="fav/realisticVisionV51_v51VAE.safetensors",
            bytes=2130 * MB, licence=OPENRAIL_M,
        ),
    ),
)  # fmt: skip
"""The bases to choose from, the default one of each family first."""

KNOWN_NAMES = frozenset(
    [
        *LAYER_FILES,
        *(file.name for files in SIBLINGS.values() for file in files),
        *(entry.remote.name for entry in BASES if entry.remote),
    ]
)
"""Names of all these files: what is called so in the user's folder is taken for it."""
