"""A checkpoint in parts: small, in several files, and as good as the one it was made of."""

from pathlib import Path

import pytest
import torch

from training.common import Average, Run
from training.optimizer import Muon
from training.portable import pack, parts, unpack


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(128, 256), torch.nn.GELU(), torch.nn.Linear(256, 128))


def stepped(work: Path, steps: int) -> torch.Tensor:
    """Goes on for so many steps from what is in `work`; returns the losses."""
    module = network()
    optimizer, average = Muon(module, 1e-3), Average(module)
    run = Run(work, "stage", minutes=60, rate=1e-3)
    run.begin(module, optimizer, average)
    aim = torch.randn(16, 128, generator=torch.Generator().manual_seed(1))
    losses = []
    for _ in run.steps(optimizer):
        loss = (module(aim) - aim).square().mean()
        run.update(module, optimizer, loss)
        average.update(module)
        losses.append(loss.detach())
        if len(losses) == steps:
            run.step += 1  # as the loop would
            run.keep()
            return torch.stack(losses)
    raise AssertionError("the run ended before")


def test_training_goes_on_from_parts_as_it_would_have_from_the_checkpoint(tmp_path: Path):
    work, other = tmp_path / "work", tmp_path / "other"
    work.mkdir()
    stepped(work, 5)
    written = pack(work / "stage.pt", tmp_path / "parts", limit=150_000)
    unpack(tmp_path / "parts", other / "stage.pt")
    assert len(written) > 1
    assert max(path.stat().st_size for path in written) <= 150_000
    assert sum(path.stat().st_size for path in written) < 0.6 * (work / "stage.pt").stat().st_size
    assert torch.load(other / "stage.pt", weights_only=True)["step"] == 5
    torch.testing.assert_close(stepped(other, 5), stepped(work, 5), rtol=1e-2, atol=0)


def test_what_is_small_or_no_fraction_comes_back_bit_for_bit(tmp_path: Path):
    state = {"step": 7, "optimizer": {"state": {0: {"second": torch.full((3,), 1e-12), "count": 4}}}, "rows": [1, None]}
    torch.save(state, tmp_path / "stage.pt")
    pack(tmp_path / "stage.pt", tmp_path / "parts")
    unpack(tmp_path / "parts", tmp_path / "again.pt")
    again = torch.load(tmp_path / "again.pt", weights_only=True)
    second = again["optimizer"]["state"][0].pop("second")
    assert torch.equal(second, state["optimizer"]["state"][0].pop("second"))
    assert again == state


def test_a_part_that_is_missing_is_named(tmp_path: Path):
    torch.save({"module": {name: torch.zeros(100, 100) for name in "abc"}}, tmp_path / "stage.pt")
    written = pack(tmp_path / "stage.pt", tmp_path / "parts", limit=30_000)
    written[1].unlink()
    with pytest.raises(SystemExit, match=r"part-2\.safetensors of 3"):
        unpack(tmp_path / "parts", tmp_path / "again.pt")
    assert not (tmp_path / "again.pt").exists()


def test_a_smaller_state_leaves_no_parts_of_a_larger_one(tmp_path: Path):
    for count in (3, 1):
        torch.save({"module": {str(name): torch.zeros(100, 100) for name in range(count)}}, tmp_path / "stage.pt")
        written = pack(tmp_path / "stage.pt", tmp_path / "parts", limit=30_000)
    assert sorted((tmp_path / "parts").iterdir()) == written


def test_a_tensor_larger_than_a_part_is_a_part_of_its_own():
    tensors = {"small": torch.zeros(10), "large": torch.zeros(1000), "last": torch.zeros(10)}
    assert [[*group] for group in parts(tensors, 400)] == [["small"], ["large"], ["last"]]
