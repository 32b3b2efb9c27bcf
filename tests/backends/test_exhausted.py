"""A worker whose memory ran out is followed by a new one."""

import sys
from pathlib import Path

import anyio
import pytest
from PIL import Image

from layerdiffuse_mcp.backends.local import LocalBackend
from layerdiffuse_mcp.errors import OutOfMemory
from layerdiffuse_mcp.requests import EncodeRequest
from layerdiffuse_mcp.settings import Settings
from tests.narrow import write_models

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's memory so"),
]


async def test_after_memory_ran_out_under_a_limit_a_new_worker_does_the_next_job(
    settings: Settings, rehearsal: str, tmp_path: Path
) -> None:
    write_models(tmp_path / "models", ("sd15",))
    sizes = {"small": 64, "large": 2048}
    for name, side in sizes.items():
        Image.new("RGBA", (side, side), (200, 30, 30, 128)).save(tmp_path / f"{name}.png")
    requests = {name: EncodeRequest(image=tmp_path / f"{name}.png", model="tiny-sd15") for name in sizes}
    backend = LocalBackend(settings.model_copy(update={"device": "cpu"}), rehearsal.replace("rehearsal", "limited"))
    try:
        await backend.run(requests["small"], lambda _: None)
        first = backend.state()[0].pid
        with pytest.raises(OutOfMemory, match="Give a smaller picture"):
            await backend.run(requests["large"], lambda _: None)
        with anyio.fail_after(60):
            while backend.state()[0].pid == first:
                await anyio.sleep(0.05)
        assert (await backend.run(requests["small"], lambda _: None)).model == "tiny-sd15"
        assert backend.state()[0].pid != first
    finally:
        await backend.close()
