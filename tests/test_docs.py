"""What the documents say of the code is so."""

import ast
import json
import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from docs.recipes import PAGE, PICTURES, recipes
from docs.tools import CALLS
from layerdiffuse_mcp.cli.parser import make_parser
from layerdiffuse_mcp.families.registry import FAMILIES
from layerdiffuse_mcp.families.spec import TOOLS as TASK_TOOLS
from layerdiffuse_mcp.installed import COMMANDS
from layerdiffuse_mcp.server.tokens import guarding
from layerdiffuse_mcp.server.tools import TOOLS
from layerdiffuse_mcp.settings import PREFIX, Settings

ROOT = Path(__file__).parent.parent
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text()
README = ROOT / "README.md"
CARD = ROOT / "layerdiffuse_mcp/pocket/MODEL_CARD.md"
PAGES = {path.relative_to(ROOT).as_posix(): path for path in (README, *sorted((ROOT / "docs").glob("*.md")))}
HOSTED = "https://raw.githubusercontent.com/layerdiffuse-mcp/layerdiffuse-mcp/main/"
each_page = pytest.mark.parametrize("page", PAGES)


@pytest.mark.parametrize("script", ["architecture", "tools", "models"])
def test_what_is_made_from_the_code_is_what_the_code_says(script: str):
    assert import_module(f"docs.{script}").main(["--check"]) == 0, f"make it again: python docs/{script}.py"


def test_every_file_that_the_architecture_names_exists():
    named = re.findall(r"`([\w/]+(?:\.py|\.md|/))`", ARCHITECTURE)
    assert named
    missing = [name for name in named if not any((top / name).exists() for top in (ROOT, ROOT / "layerdiffuse_mcp"))]
    assert not missing


def test_the_architecture_names_every_room():
    rooms = [path.parent.name for path in (ROOT / "layerdiffuse_mcp").glob("*/__init__.py")]
    picture = (ROOT / "docs/architecture.svg").read_text()
    assert [room for room in rooms if room not in picture] == []


def test_the_architecture_takes_two_pages_at_most():
    assert len(ARCHITECTURE.split()) <= 1000


def anchors(text: str) -> set[str]:
    """What links to a page's headings say."""
    headings = re.findall(r"^#+ (.+)$", without_code(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


@each_page
def test_every_link_leads_to_something(page: str):
    path, text = PAGES[page], without_code(PAGES[page].read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(HOSTED):
            assert (ROOT / target.removeprefix(HOSTED)).is_file(), target
        elif "://" not in target:
            name, _, anchor = target.partition("#")
            there = (path.parent / name) if name else path
            assert there.exists(), target
            assert not anchor or anchor in anchors(there.read_text()), target


def test_pictures_of_the_readme_are_found_from_other_sites_too():
    """The page on PyPI is made of it."""
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README.read_text())
    assert pictures
    assert all(picture.startswith(HOSTED) for picture in pictures)


def test_every_page_can_be_reached_from_the_readme():
    text = README.read_text()
    assert [page for page in PAGES if page != "README.md" and f"({page}" not in text] == []


def test_the_readme_names_every_tool_and_says_in_its_third_line_what_the_embedded_model_is():
    text = README.read_text()
    assert set(re.findall(r"`([a-z]+_[a-z_]+)`", text)) == {row.name for row in TOOLS}
    third = text.splitlines()[2]
    assert "pocket model" in third
    assert "no substitute" in third


def commands(text: str) -> list[str]:
    """Every command line of ours that a page shows, in blocks and within sentences."""
    blocks = re.findall(r"^(?:layerdiffuse-mcp)( .*)?$", text, re.MULTILINE)
    return [*blocks, *re.findall(r"`layerdiffuse-mcp( [^`]+)`", without_code(text))]


@each_page
def test_every_command_that_is_shown_can_be_given(page: str, capsys: pytest.CaptureFixture[str]):
    refused = [line for line in commands(PAGES[page].read_text()) if not is_taken(line)]
    assert not refused, capsys.readouterr().err


def is_taken(line: str) -> bool:
    """Whether the command line takes what stands behind the program's name."""
    words = shlex.split(line, comments=True)
    if words[:1] == ["COMMAND"]:
        return True
    try:
        make_parser().parse_args(words if words and not words[0].startswith("-") else ["serve", *words])
    except SystemExit as ended:
        return ended.code == 0  # --help
    return True


@each_page
def test_every_setting_that_is_named_exists(page: str):
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    assert set(re.findall(rf"{PREFIX}[A-Z_]+[A-Z]", PAGES[page].read_text())) <= known


def test_the_table_of_settings_has_them_all():
    rows = re.findall(r"^\| (`[^|]+`) \|", PAGES["docs/settings.md"].read_text(), re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`([A-Z_]+)`", row)]
    assert sorted(named) == sorted(name.upper() for name in Settings.model_fields)


def test_errors_are_quoted_as_the_code_says_them():
    said = [
        node.value
        for path in (ROOT / "layerdiffuse_mcp").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    quoted = re.findall(r"^> (.+)$", PAGES["docs/troubleshooting.md"].read_text(), re.MULTILINE)
    parts = [part.strip() for line in quoted for part in line.split("...")]
    assert len(parts) > 20
    assert [part for part in parts if not any(part in text for text in said)] == []


def schema_of(tool: str) -> Draft202012Validator:
    recorded = json.loads((ROOT / f"tests/server/snapshots/{tool}.json").read_text())
    return Draft202012Validator(recorded["inputSchema"])


@pytest.mark.parametrize("tool", [row.name for row in TOOLS])
def test_the_call_that_shows_a_tool_fits_its_schema(tool: str):
    schema_of(tool).validate(CALLS[tool])


@pytest.mark.parametrize("number", [str(number) for number in range(1, 11)])
def test_the_calls_of_a_recipe_fit_the_schemas_and_its_picture_is_there(number: str):
    calls = recipes(PAGE.read_text())[number]
    assert calls
    for call in calls:
        schema_of(call.tool).validate(call.arguments)
    assert f"(pictures/recipe-{number}.webp)" in PAGE.read_text()


def test_the_pictures_of_the_recipes_are_small():
    assert sum(path.stat().st_size for path in PICTURES.iterdir()) < 1_000_000


WRITTEN = {path: path.read_text() for path in (*PAGES.values(), ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md")}


def test_every_pytorch_that_is_to_be_installed_is_one_that_the_package_takes():
    """Else pip replaces it by the newest of the index that fits, which on Linux brings CUDA."""
    commands = re.compile(r"pip install [^`\n]*?'?(torch\S*?)'? --index")
    written = [bound for text in WRITTEN.values() for bound in commands.findall(text)]
    assert len(written) >= 3
    bound = re.search(r'"torch>=[\d.]+,(<[\d.]+)"', (ROOT / "pyproject.toml").read_text())
    pinned = re.search(r"^torch(==[\d.]+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert {*written} <= {f"torch{found[1]}" for found in (bound, pinned) if found}


def test_tokens_that_are_shown_are_long_enough(tmp_path: Path):
    shown = {token for text in WRITTEN.values() for token in re.findall(r"(?:--token|Bearer) ([A-Z-]{6,})", text)}
    assert shown
    for token in shown:
        guarding(token, Settings(output_dir=tmp_path))


def test_the_page_of_models_has_every_way_to_bring_an_extra():
    page = PAGES["docs/models.md"].read_text()
    assert [way for way in COMMANDS.values() if way.format("'layerdiffuse-mcp[layered]'") not in page] == []


def test_the_model_card_names_the_tools_that_need_another_model():
    able = {TASK_TOOLS[task] for task in FAMILIES["sd15"].routes}
    [line] = [line for line in CARD.read_text().splitlines() if "all other tools work" in line]
    assert set(re.findall(r"`([a-z_]+)`", line)) == {*TASK_TOOLS.values()} - able
