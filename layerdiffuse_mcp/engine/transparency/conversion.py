"""A codec that is published as a pickle, as the two files that are read here.

    names = convert(Path("TransparentVAE.pth"), folder)         # in a process of its own: `backends/conversion.py`

`torch.load(weights_only=True)` opens it: whatever would do more than put tensors together is refused, unrun. It holds
both networks in one dictionary, as `decoder.` and `encoder.`, and perhaps the autoencoder that they were trained with.
They are those of `networks.py`, but with alpha behind the colours and before the encoder's answer is enlarged; what is
written is as the released files are.
"""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor

from layerdiffuse_mcp.engine.device.memory import is_out_of_memory
from layerdiffuse_mcp.engine.transparency.networks import (
    UNSCALED_ENCODER_SCALE,
    load_decoder,
    load_offset_encoder,
)
from layerdiffuse_mcp.errors import LayerFileError, ModelError
from layerdiffuse_mcp.families.registry import FAMILIES
from layerdiffuse_mcp.families.spec import Codec
from layerdiffuse_mcp.wording import printable, short

ALPHA_LAST, LATENT = ("decoder.conv_out.weight", "decoder.conv_out.bias"), "decoder.latent_conv_in.weight"
SEEN_BY_ENCODER = "encoder.blocks.0.weight"
LAST_OF_ENCODER = ("encoder.blocks.16.weight", "encoder.blocks.16.bias")
ASKED_FOR = re.compile(r"GLOBAL ([\w.]+)")
"""What a pickle wants to be given that is no tensor, in torch's refusal."""


def convert(path: Path, folder: Path) -> tuple[str, ...]:
    """Write the codec's files into `folder`; returns their names.

    Raises:
        LayerFileError: it is no such pickle, or would run code; a file may be there that is not whole.
    """
    name = printable(path.name, 80)
    tensors = _unpickled(path, name)
    codec = _codec_of(tensors, name)
    for key in ALPHA_LAST:
        tensors[key] = tensors[key].roll(1, 0)
    tensors[SEEN_BY_ENCODER] = tensors[SEEN_BY_ENCODER].roll(1, 1)
    for key in LAST_OF_ENCODER:
        tensors[key] = tensors[key].float() * UNSCALED_ENCODER_SCALE
    for network, file, load in (
        ("decoder.", codec.decoder, load_decoder), ("encoder.", codec.encoder, load_offset_encoder)
    ):  # fmt: skip
        part = {key.removeprefix(network): one.contiguous() for key, one in tensors.items() if key.startswith(network)}
        save_file(part, folder / file)
        try:
            load(folder / file)
        except ModelError as error:
            raise LayerFileError(f"{name} holds no codec that is known here. {error}") from None
    return codec.files


def _unpickled(path: Path, name: str) -> dict[str, Tensor]:
    """The tensors of a pickle by name."""
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if (asked := ASKED_FOR.search(str(error))) is None:
            raise LayerFileError(f"{name} is no file that torch.save wrote, or damaged. Fetch it again.") from None
        raise LayerFileError(
            f"{name} asks for {short(asked[1])} when it is opened, which weights never need: it may be meant to run "
            "code. Nothing of it was run. Do not open it elsewhere; fetch the published file."
        ) from None
    except (RuntimeError, ValueError, EOFError, OSError, LookupError, TypeError, AttributeError) as error:
        if is_out_of_memory(error):
            raise MemoryError(str(error)) from None
        raise LayerFileError(f"{name} is no file that torch.save wrote, or damaged. Fetch it again.") from None
    named = isinstance(content, Mapping) and all(isinstance(key, str) for key in cast(Mapping[Any, Any], content))
    if not named or not all(isinstance(one, Tensor) for one in cast(Mapping[str, Any], content).values()):
        raise LayerFileError(f"{name} holds something else than tensors by name. Give the published file.")
    return dict(cast(Mapping[str, Tensor], content))


def _codec_of(tensors: Mapping[str, Tensor], name: str) -> Codec:
    """The files of the family whose latents the networks are for."""
    needed = (*ALPHA_LAST, LATENT, SEEN_BY_ENCODER, *LAST_OF_ENCODER)
    cards = [card for card in FAMILIES.values() if any(file.converted_from for file in card.files.values())]
    published = " or ".join(
        sorted({file.fetched.name for card in cards for file in card.files.values() if file.converted_from})
    )
    sound = {key for key in needed if key in tensors and tensors[key].ndim == (4 if key.endswith("weight") else 1)}
    if lacking := [key for key in needed if key not in sound]:
        raise LayerFileError(f"{name} is no codec: it has no {lacking[0]}. What is converted is {published}.")
    channels = tensors[LATENT].shape[1]
    for card in cards:
        if card.codec and card.latent.channels == channels:
            return card.codec
    raise LayerFileError(f"{name} is for latents of {channels} channels, of which no family is known here.")
