"""What tests of a base's weights do with the narrow bases: open them, compare states, make up texts."""

from pathlib import Path

import torch
from torch import Tensor

from layerdiffuse_mcp.engine.types import Conditioning
from layerdiffuse_mcp.engine.weights.checkpoint import Checkpoint
from layerdiffuse_mcp.engine.weights.reader import read_checkpoint
from tests.narrow import UNETS, write_base


def read_base(folder: Path, family: str) -> Checkpoint:
    """A complete base in a single file, opened."""
    return read_checkpoint(write_base(folder, family))


def copy_of(module: torch.nn.Module) -> dict[str, Tensor]:
    """A network's state, detached from it."""
    return {key: tensor.detach().clone() for key, tensor in module.state_dict().items()}


def same(module: torch.nn.Module, state: dict[str, Tensor]) -> bool:
    """Whether a network's state is `state`, bit for bit."""
    now = module.state_dict()
    return now.keys() == state.keys() and all(torch.equal(now[key], tensor) for key, tensor in state.items())


def conditioning(rows: int, family: str, positive: list[bool] | None = None) -> Conditioning:
    """Random text for each row."""
    torch.manual_seed(3)
    config = UNETS[family]
    vector = torch.randn(rows, config["projection_class_embeddings_input_dim"]) if family == "sdxl" else None
    marks = None if positive is None else torch.tensor(positive)
    return Conditioning(torch.randn(rows, 5, config["cross_attention_dim"]), vector, positive=marks)
