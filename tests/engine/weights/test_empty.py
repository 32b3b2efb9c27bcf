"""Networks made without weights: nothing is computed for them, and they are filled as any other."""

import torch
from torch import nn

from layerdiffuse_mcp.engine.weights.empty import without_weights


def network() -> nn.Module:
    embedding = nn.Embedding(6, 4)
    nn.init.constant_(embedding.weight, 1.0)
    return nn.Sequential(embedding, nn.Conv1d(4, 4, 3), nn.LayerNorm(4), nn.Linear(4, 2))


def test_a_network_made_without_weights_takes_those_of_a_file() -> None:
    filled = network()
    with without_weights():
        empty = network()
    assert all(parameter.is_meta for parameter in empty.parameters())
    empty.load_state_dict(filled.state_dict(), assign=True)
    assert all(map(torch.equal, empty.parameters(), filled.parameters()))


def test_nothing_is_computed_for_weights_that_are_not_there() -> None:
    with without_weights(), torch.profiler.profile() as profile:
        network()
    assert not {event.key for event in profile.key_averages()} & {"aten::uniform_", "aten::normal_"}
