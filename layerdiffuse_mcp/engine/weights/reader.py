"""A base of any layout -> `Checkpoint`, with no hub access.

checkpoint = read_checkpoint("juggernautXL_v6.safetensors")
"""

import os
from dataclasses import replace
from pathlib import Path

from layerdiffuse_mcp.engine.weights.checkpoint import Checkpoint
from layerdiffuse_mcp.engine.weights.diffusers_folder import read_folder
from layerdiffuse_mcp.engine.weights.single_file import V_PREDICTION_KEYS, header_settings, single_file_parts
from layerdiffuse_mcp.engine.weights.tensor_file import TensorFile
from layerdiffuse_mcp.errors import CheckpointError
from layerdiffuse_mcp.families.registry import FAMILIES, titles
from layerdiffuse_mcp.hub.identify import identify


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Open a single-file checkpoint (`.safetensors`, LDM layout) or a diffusers folder; loads no weights.

    Raises `ModelNotFound` when there is nothing at `path`, `CheckpointError` when it is damaged, a pickle, or of no
    family: the message says what it is instead.
    """
    path = Path(path)
    if os.path.isdir(path):
        return read_folder(path)
    file = TensorFile(path)
    kind = identify(file.shapes, file.metadata)
    if kind.family is None:
        other = f"use a base of {titles()} (a single .safetensors file or a diffusers folder)"
        raise CheckpointError(
            f"{path.name} is {kind.title}, not a base model that layer models fit; {kind.instead or other}."
        )
    settings = header_settings(file)
    family = str(settings.get("family", kind.family))
    if family not in FAMILIES:
        raise CheckpointError(f"{path.name} says that it is of the family {family[:80]!r}; use a base of {titles()}.")
    spec = FAMILIES[family]
    v_prediction = (
        any(key in file for key in V_PREDICTION_KEYS) or file.metadata.get("modelspec.prediction_type") == "v"
    )
    prediction = str(settings.get("prediction", "v_prediction" if v_prediction else "epsilon"))
    return Checkpoint(
        path=path,
        spec=spec,
        prediction=prediction,
        zero_terminal_snr=bool(settings.get("zero_terminal_snr", "ztsnr" in file)),
        native_size=int(settings.get("native_size", spec.native_size)),
        latent=replace(
            spec.latent,
            scale=settings.get("vae", {}).get("scaling_factor", spec.latent.scale),
            rgb_factors=settings.get("latent_rgb", spec.latent.rgb_factors),
        ),
        parts=single_file_parts(file, spec, settings),
        name=str(settings.get("name", path.stem)),
        settings=settings,
        vae_fits_float16=spec.vae_fits_float16,
    )
