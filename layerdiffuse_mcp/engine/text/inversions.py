"""Textual inversions on a base (Gal et al. 2022, https://arxiv.org/abs/2208.01618): vectors in the place of tokens.

taught = read_inversions({"easynegative": path}, widths=(768,))
taught[0]["easynegative"]           # (vectors, 768), for the first text encoder
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from layerdiffuse_mcp.engine.weights.tensor_file import TensorFile
from layerdiffuse_mcp.errors import LayerFileError
from layerdiffuse_mcp.hub.inversions import ENCODERS
from layerdiffuse_mcp.wording import printable

Taught = Mapping[str, Tensor]
"""The vectors of each name, (V, C), for one text encoder."""


def read_inversions(paths: Mapping[str, Path], widths: Sequence[int]) -> tuple[Taught, ...]:
    """The vectors of files by their names, for each text encoder, whose tokens have `widths` numbers.

    Raises:
        ModelNotFound: there is no such file.
        LayerFileError: one is damaged, holds NaN, or has vectors of other widths.
    """
    taught: tuple[dict[str, Tensor], ...] = tuple({} for _ in widths)
    for name, path in paths.items():
        file = TensorFile(path, LayerFileError)
        file.require_finite()
        keys = next((keys for keys in ENCODERS if set(keys) <= file.keys()), tuple(file))
        tensors = [file.read(key).reshape(-1, file[key].shape[-1]) for key in keys]
        if [tensor.shape[1] for tensor in tensors] != [*widths]:
            raise LayerFileError(f"{printable(path.name)} is no textual inversion that fits this base.")
        for encoder, tensor in zip(taught, tensors, strict=True):
            encoder[name] = tensor
    return taught
