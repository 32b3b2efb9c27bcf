"""The calls of docs/recipes.md, made as they stand there but for steps and size, with the embedded model."""

from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest
from mcp import Client

from docs.recipes import PAGE, Call, Facts, give, made, recipes, shown
from layerdiffuse_mcp.server.app import create_server
from layerdiffuse_mcp.settings import Settings

pytestmark = pytest.mark.anyio

PICTURES = {"image", "foreground", "background"}
CALLS = recipes(PAGE.read_text())
MADE = {
    "1": [["foreground"] * 4, ".png", ".psd"],
    "2": [["foreground"], ".png"],
    "3": [["foreground"] * 8],
    "4": [["foreground", "background", "blended"], ".psd"],
    "5": [["foreground"], ["background", "blended"]],
    "6": [["foreground", "composed"]],
    "7": [".png"],
    "8": [".png", ".png"],
    "9": [["foreground"], ".png", ".png"],
    "10": [["foreground"], ["foreground"], ["foreground"]],
}
"""What the calls of each recipe make: the layers that are drawn, or a file of that kind."""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the server works; the files that recipes start from lie there."""
    folder = tmp_path_factory.mktemp("project")
    give(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
async def client(project: Path) -> AsyncIterator[Client]:
    settings = Settings(output_dir=project / "out", models_dir=project / "models", model="pocket")
    async with Client(create_server(settings)) as opened:
        yield opened


def test_every_recipe_is_tried():
    assert MADE.keys() == CALLS.keys()


@pytest.mark.parametrize("number", MADE)
async def test_the_calls_of_a_recipe_make_what_it_says(number: str, client: Client, project: Path):
    results = await made(client, [quick(call) for call in CALLS[number]])
    assert kinds(results) == MADE[number]
    assert all(path.is_file() for path in shown(CALLS[number], results, project))


def quick(call: Call) -> Call:
    """The call, in one step if it draws, and of few pixels if it draws one subject from words alone."""
    given = call.arguments
    options: dict[str, object] = {"steps": 1}
    size: dict[str, object] = {}
    if "prompt" in given:
        options["fit"] = "as_is"
        if not PICTURES & given.keys():
            size["size"] = "64x64"
    elif "subjects" not in given:
        return call
    return Call(call.tool, size | given | {"options": options | given.get("options", {})})


def kinds(results: Sequence[Facts]) -> list[list[str] | str]:
    return [
        [one["role"] for one in facts["images"]] if "images" in facts else Path(facts["path"]).suffix
        for facts in results
    ]
