"""Any arguments to any tool: a clear error or a right result, in bounded time and memory, and the next call works."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerdiffuse_mcp.server.tools import TOOLS
from tests.fuzz.examples import bounded, examples
from tests.fuzz.hostile import spoilt
from tests.fuzz.serving import Server
from tests.results import facts_of


@pytest.mark.parametrize("tool", [row.name for row in TOOLS])
@examples(12)
@given(data=st.data())
def test_any_arguments_are_refused_in_words_or_obeyed(server: Server, folder: Path, tool: str, data: st.DataObject):
    paths = (str(folder / "disc.png"), "disc.png", str(folder / "text.txt"), "job-0-1", "none.png")
    arguments = data.draw(spoilt(server.schemas[tool], paths))
    with bounded():
        server.call(tool, arguments)
        server.wait_until_idle()


def test_after_all_that_a_picture_is_drawn(server: Server):
    assert facts_of(server.call("generate_transparent", {"prompt": "steps 2"}))["status"] == "done"
