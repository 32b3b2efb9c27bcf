"""What cannot be computed with here is neither fetched nor asked about: every door says what to install first."""

import sys
from collections.abc import Callable

import pytest
from mcp import Client

from layerdiffuse_mcp import installed
from layerdiffuse_mcp.api.plan import Download
from layerdiffuse_mcp.api.requests import GenerateRequest, PrepareRequest
from layerdiffuse_mcp.cli.doctor import missing
from layerdiffuse_mcp.cli.parser import main
from layerdiffuse_mcp.errors import ModelNotFound
from layerdiffuse_mcp.families.entries import ModelEntry
from layerdiffuse_mcp.families.matting import MATTING
from layerdiffuse_mcp.families.registry import BASES, FAMILIES
from layerdiffuse_mcp.hub import catalog, consent
from layerdiffuse_mcp.hub.download import prepare
from layerdiffuse_mcp.jobs.planner import plan
from layerdiffuse_mcp.server.app import create_server
from layerdiffuse_mcp.settings import Settings
from tests.hub.double import Hub
from tests.results import text_of

NEEDY = {entry.name: entry for entry in BASES if FAMILIES[entry.family or ""].extra} | MATTING
PACKAGES = {package for extra in ("layered", "cutout") for package in installed.EXTRAS[extra]}


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain install, without the extras."""
    found = installed.find_spec
    monkeypatch.setattr(installed, "find_spec", lambda name: None if name in PACKAGES else found(name))


def doors(name: str, settings: Settings) -> list[Callable[[], object]]:
    """All by which a model is asked for: each a call that fetches it, asks for it, or plans that."""
    entry = NEEDY[name]
    found: list[Callable[[], object]] = [
        lambda: prepare(name, settings, print),
        lambda: consent.lacking([Download(model=name)], settings),
    ]
    if not isinstance(entry, ModelEntry):
        return [*found, lambda: plan(PrepareRequest(model=name), settings)]
    [task] = FAMILIES[entry.family or ""].routes
    found.append(lambda: plan(PrepareRequest(model=name, task=task), settings))
    if not FAMILIES[entry.family or ""].given_roles(task):
        request = GenerateRequest(prompt="a glass", model=name, task=task)
        fetching = settings.model_copy(update={"auto_download": True})
        found += [lambda: plan(request, settings), lambda: plan(request, fetching)]
    return found


@pytest.mark.parametrize("name", NEEDY)
def test_every_door_names_the_libraries_first_and_asks_the_hub_nothing(name: str, settings: Settings, hub: Hub):
    for door in doors(name, settings):
        with pytest.raises(ModelNotFound, match=rf"^{name} needs .* lacks: run `pip install 'layerdiffuse-mcp\["):
            door()
    assert hub.requests == []


@pytest.mark.parametrize("name", NEEDY)
def test_the_command_asks_for_no_licence_and_fetches_nothing(name: str, hub: Hub, capsys: pytest.CaptureFixture[str]):
    for flags in ([], ["--yes"]):
        assert main(["models", "prepare", name, *flags]) == 1
        said = capsys.readouterr()
        assert "[y/N]" not in said.out
        assert f"error: {name} needs " in said.err
    assert hub.requests == []


def test_workers_of_a_cluster_look_at_their_own_libraries(settings: Settings):
    ray = settings.model_copy(update={"backend": "ray"})
    assert consent.lacking([Download(model="qwen-image-layered")], ray)
    with pytest.raises(ModelNotFound):
        consent.lacking([Download(model="birefnet")], ray)  # which runs beside the server


def test_doctor_brings_libraries_before_what_needs_them(settings: Settings):
    commands = [one.command for one in missing(settings)]
    for extra, name in {"layered": "qwen_layered", "cutout": "birefnet-lite"}.items():
        assert commands.index(installed.install(extra)) < commands.index(f"layerdiffuse-mcp models prepare {name}")


def test_under_uvx_doctor_prepares_what_needs_an_extra_with_it(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "prefix", "/home/x/.cache/uv/archive-v0/x1")
    commands = {one.command for one in missing(settings)}
    assert f"{installed.program()} models prepare sdxl" in commands
    for extra, name in {"layered": "qwen_layered", "cutout": "birefnet-lite"}.items():
        assert f"{installed.program(extra)} models prepare {name}" in commands


@pytest.mark.anyio
async def test_nobody_is_asked_to_fetch_it_and_the_list_says_what_is_missing(settings: Settings):
    questions: list[str] = []

    async def answer(context: object, params: object) -> object:
        questions.append(str(params))
        raise AssertionError(params)

    async with Client(create_server(settings), elicitation_callback=answer) as client:
        for name in NEEDY:
            refused = await client.call_tool("prepare_model", {"model": name, "task": _task(name)})
            assert f"{name} needs " in text_of(refused)
        listed = text_of(await client.call_tool("list_models", {"subjects": "apple"}))
    assert questions == []
    for name in NEEDY:
        [line] = [line for line in listed.splitlines() if line.startswith(f"{name}:") or line.startswith(f"{name},")]
        assert "; needs " in line
    able = [catalog.tasks(entry, settings).values() for entry in BASES if entry.name in NEEDY]
    assert not any(map(any, able))


def _task(name: str) -> str:
    entry = NEEDY[name]
    return next(iter(FAMILIES[entry.family or ""].routes)).value if isinstance(entry, ModelEntry) else "transparent"
