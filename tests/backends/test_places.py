"""Where workers run: one a device, several on a CPU with their shares, and torch is not needed to know."""

import logging
import sys
from pathlib import Path

import pytest

from layerdiffuse_mcp.backends import places as module
from layerdiffuse_mcp.backends.places import Place, cuda_devices, places
from layerdiffuse_mcp.settings import Settings

FOUR = ("0", "1", "2", "3")


def placed(devices: tuple[str, ...] = (), environment: dict[str, str] | None = None, **fields: object):
    return places(Settings(**fields), environment or {}, devices)


def test_there_is_a_worker_for_each_device_and_each_sees_its_own_alone():
    found = placed(FOUR)
    assert [place.environment for place in found] == [{"CUDA_VISIBLE_DEVICES": name} for name in FOUR]
    assert placed(FOUR, workers=2) == found[:2]


def test_no_more_than_one_a_device_and_whoever_asks_for_more_is_told(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        assert len(placed(FOUR, workers=9)) == 4
        assert len(placed(("0",), workers=3, device="cuda")) == 1
    assert "9 workers were asked for, and there are 4" in caplog.text


def test_one_device_or_none_is_what_the_settings_say():
    assert placed(("0",)) == placed(device="cpu") == placed(device="mps") == (Place(),)


def test_workers_on_a_cpu_share_its_cores_and_its_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_cores", lambda: 8)
    found = placed(device="cpu", workers=4)
    assert [place.environment for place in found] == [{"OMP_NUM_THREADS": "2"}] * 4
    assert {place.settings(Settings(max_memory=12)).max_memory for place in found} == {3}
    without = {place.settings(Settings()).max_memory for place in found}
    assert all(share and share * 4 < module_memory() for share in without)
    assert placed(environment={"OMP_NUM_THREADS": "3"}, device="cpu", workers=4)[0].environment == {}


def module_memory() -> float:
    import psutil

    return psutil.virtual_memory().total / 1e9


def test_a_cpu_without_devices_takes_as_many_workers_as_asked(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_may_be_elsewhere", lambda: False)
    assert len(placed(workers=3)) == 3
    monkeypatch.setattr(module, "_may_be_elsewhere", lambda: True)
    assert len(placed(workers=3)) == 1


@pytest.mark.parametrize(
    ("visible", "found"),
    [
        (None, FOUR),
        ("2,0", ("2", "0")),
        ("1, GPU-8f3a,3", ("1", "GPU-8f3a", "3")),
        ("0,7,1", ("0",)),
        ("0,-1,1", ("0",)),
        ("", ()),
        ("-1", ()),
    ],
)
def test_the_devices_that_may_be_used_are_those_that_cuda_would_see(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, found: tuple[str, ...]
):
    monkeypatch.setattr(module, "_torch_is_for_cuda", lambda: True)
    monkeypatch.setattr(module, "_nvml_count", lambda: 4)
    assert cuda_devices({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}) == found


@pytest.mark.parametrize(
    ("version", "usable"),
    [("cuda: Optional[str] = '12.8'\nhip: Optional[str] = None\n", True), ("cuda: Optional[str] = None\n", False)],
)
def test_devices_of_which_torch_can_make_no_use_do_not_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str, usable: bool
):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "torch" / "version.py").write_text(version)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(module, "_nvml_count", lambda: 2)
    assert cuda_devices({}) == (("0", "1") if usable else ())
