"""The command line as a whole: every flag is described, what is wrong is explained, and nothing heavy is imported."""

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerdiffuse_mcp.cli.parser import main, make_parser
from layerdiffuse_mcp.server.tools import TOOLS

ROOT = Path(__file__).parents[2]


def parsers(parser: argparse.ArgumentParser, name: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every command with its parser, those behind another too."""
    yield name, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below, one in action.choices.items():
                yield from parsers(one, f"{name} {below}".strip())


COMMANDS = {name: parser for name, parser in parsers(make_parser()) if name}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_is_described(command: str) -> None:
    for action in COMMANDS[command]._actions:
        if not isinstance(action, argparse._SubParsersAction):
            said = re.sub(r"^\{[^}]*\}", "", action.help or "").strip()
            assert said, f"{command} {action.option_strings or action.dest}"
    assert COMMANDS[command].format_help()


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"serve", "settings"}))
def test_settings_stand_under_serve_and_settings_alone(command: str) -> None:
    flags = {flag for action in COMMANDS[command]._actions for flag in action.option_strings}
    assert not flags & {"--models-dir", "--device", "--dtype", "--offload", "--history", "--queue-size", "--log-file"}


def test_allowed_names_stand_in_the_help_of_a_flag() -> None:
    shown = " ".join(COMMANDS["generate"].format_help().split())
    assert "Euler a" in shown
    assert "{none, in_turn" in " ".join(COMMANDS["serve"].format_help().split()).replace("auto, ", "")


def test_the_page_of_commands_shows_every_one_and_no_other() -> None:
    """Whether each can be given so is asked in `tests/test_docs.py`."""
    text = (ROOT / "docs/commands.md").read_text()
    named = set(re.findall(r"^layerdiffuse-mcp (models [a-z]+|[a-z][a-z-]+)", text, re.MULTILINE))
    assert named == COMMANDS.keys()


COUNTERPARTS = {
    "generate_transparent": "generate", "edit_transparent": "generate", "upscale_transparent": "upscale",
    "generate_layers": "generate",
    "generate_background_from_foreground": "generate", "generate_foreground_from_background": "generate",
    "extract_layer": "generate", "decompose_image": "decompose", "generate_set": "set", "redraw_image": "redraw",
    "decode_transparent_latent": "decode", "encode_transparent_image": "encode", "compose_layers": "compose",
    "cut_out": "cut-out", "make_sheet": "sheet", "inspect_image": "inspect", "find_images": "find",
    "delete_images": "delete", "list_models": "models", "prepare_model": "models prepare", "server_status": "doctor",
}  # fmt: skip
OF_A_SERVER = {"get_job", "cancel_job", "list_jobs", "unload_models"}
"""Tools about work that goes on between calls: a command waits for its own, and ends."""
OF_A_PERSON = {
    "serve", "settings", "reproduce", "clean", "models check", "models convert", "sanity-check", "token", "view",
}  # fmt: skip
"""Commands that serve, or that a person looks at or agrees to."""


def test_what_a_tool_can_do_a_command_can_and_back() -> None:
    assert {row.name for row in TOOLS} == COUNTERPARTS.keys() | OF_A_SERVER
    assert COMMANDS.keys() == {*COUNTERPARTS.values()} | OF_A_PERSON


WRONG = {
    "empty prompt": (["generate", ""], "prompt is empty"),
    "width": (["generate", "x", "--width", "7"], "width .*16"),
    "model": (["generate", "x", "--model", "poket"], "There is no model 'poket'"),
    "recipe": (["reproduce", __file__], "not a picture"),
    "setting": (["serve", "--queue-size", "0"], "queue_size"),
    "sampler": (["generate", "x", "--sampler", "Eular"], "Euler"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_explained_in_one_line_on_stderr(case, capsys) -> None:
    command, hint = WRONG[case]
    assert main(command) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.search(hint, printed.err)
    assert "Traceback" not in printed.err


@pytest.mark.parametrize(
    ("name", "value", "words"), [("DTYPE", "float16", "float16"), ("QUEUE_SIZE", "0", "queue_size")]
)
def test_a_setting_of_the_environment_that_cannot_be_used_is_named(name, value, words, capsys, monkeypatch) -> None:
    monkeypatch.setenv(f"LAYERDIFFUSE_{name}", value)
    assert main(["generate", "x", "--model", "pocket"]) == 1
    assert words in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a Linux device")
@pytest.mark.parametrize("output", ["> /dev/full", ">&-"])
def test_without_a_usable_standard_output_one_line_says_so(output: str) -> None:
    line = f'exec "{sys.executable}" -m layerdiffuse_mcp token anna {output}'
    ran = subprocess.run(["/bin/sh", "-c", line], capture_output=True, text=True)
    assert ran.returncode == 1
    assert re.fullmatch("error: standard output .*\n", ran.stderr)


def test_help_and_version_import_nothing_heavy() -> None:
    code = (
        "import sys; from layerdiffuse_mcp.cli.parser import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(bool({'torch', 'diffusers', 'transformers', 'numpy', 'PIL', 'cv2'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "generate" in done.stdout
