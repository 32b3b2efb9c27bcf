"""Testing a base: whether the background that it draws is the mid-grey that layer files need."""

import re
from pathlib import Path

import pytest

from layerdiffuse_mcp.cli.parser import main
from layerdiffuse_mcp.hub import catalog
from layerdiffuse_mcp.jobs import checks
from layerdiffuse_mcp.settings import Settings


@pytest.mark.usefixtures("narrow")
def test_a_base_whose_background_is_no_grey_is_named_in_its_drawings_until_it_passes(
    models: Path, lines, capsys, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    checks.remembered(catalog.find("tiny-sd15", Settings(models_dir=models)), (32, 80, 160))
    draw = ["generate", "a cup", "--model", "tiny-sd15", "--steps", "1"]
    main(draw)
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "tiny-sd15 failed its test: it draws its background #2050a0 where layer files need #757575 to #898989" in said
    )
    assert main(["models", "check", "tiny-sd15"]) == 0
    assert re.match("tiny-sd15 passed: it draws its background #[78][0-9a-f]", lines()["check"])
    main(draw)
    assert "failed its test" not in capsys.readouterr().err


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("name", ["none", "realvisxl-v4"])
def test_a_base_that_is_not_here_cannot_be_checked(name: str, capsys) -> None:
    assert main(["models", "check", name]) == 1
    assert "error: " in capsys.readouterr().err
