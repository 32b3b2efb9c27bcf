"""The command line: serve (the default), generate, reproduce, on pictures and the history, models, doctor.

    layerdiffuse-mcp                                 serve MCP on stdio
    layerdiffuse-mcp generate "a red apple" -o out/  draw without a client
    layerdiffuse-mcp reproduce picture.png           draw a picture again from the recipe inside it
    layerdiffuse-mcp cut-out photo.png -o out/       cut the subject out of a picture
    layerdiffuse-mcp sheet *.png -o out/             a sprite sheet with its atlas
    layerdiffuse-mcp compose scene.png lamp.png      put pictures together
    layerdiffuse-mcp find red apple --since 7d       pictures made before
    layerdiffuse-mcp clean --older-than 30d          delete the older ones, once asked
    layerdiffuse-mcp models                          which models there are
    layerdiffuse-mcp models prepare NAME             fetch a base and its layer files
    layerdiffuse-mcp doctor                          what this machine has and what is missing

Flags are made from the fields of the settings and of the request, so both have one description.
The start-up of `serve` imports no torch; the other commands import it when they need it.
"""

import argparse
import json
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from layerdiffuse_mcp import __version__
from layerdiffuse_mcp.api.fields import OneOf, explain
from layerdiffuse_mcp.api.layers import COMPOSED, Canvas
from layerdiffuse_mcp.api.requests import GenerateRequest, validated
from layerdiffuse_mcp.cli.history import add_history_commands
from layerdiffuse_mcp.cli.pictures import add_picture_commands
from layerdiffuse_mcp.errors import InvalidRequest, LayerDiffuseError
from layerdiffuse_mcp.families.registry import FAMILIES
from layerdiffuse_mcp.families.spec import ROLES, Task
from layerdiffuse_mcp.settings import Settings
from layerdiffuse_mcp.wording import quoted

NOT_FLAGS = {"kind", "prompt", "task", "stages", "inputs", "layer_prompts", "notes", "drawn_with"}
"""Fields of a request that no flag of the same name sets."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 a failure that is explained on stderr, 2 wrong usage."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help", "--version")):
        arguments.insert(0, "serve")
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except LayerDiffuseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="layerdiffuse-mcp", description="Pictures and layers with real transparency.")
    parser.add_argument("--version", action="version", version=f"layerdiffuse-mcp {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="serve MCP on stdio (the default command)")
    serve.add_argument("--http", action="store_true", help="serve Streamable HTTP instead of stdio")
    serve.add_argument("--host", default="127.0.0.1", help="address for --http; anything but loopback needs --token")
    serve.add_argument("--port", type=int, default=8000, help="port for --http")
    serve.add_argument("--token", help="bearer token that --http clients must send, of 16 characters or more")
    serve.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="another name that --http clients may have for this machine; can be given again",
    )
    serve.set_defaults(run=_serve)

    generate = commands.add_parser("generate", help="draw pictures")
    generate.add_argument("prompt", nargs="?", default="", help="what to draw, for example 'a red apple'")
    generate.add_argument("--task", choices=[task.value for task in Task], default=Task.TRANSPARENT.value)
    for name, field in GenerateRequest.model_fields.items():
        if name not in NOT_FLAGS:
            _add_flag(generate, name, field)
    for role in ROLES:
        generate.add_argument(f"--{role}", metavar="FILE", help=f"the {role} picture that the task starts from")
        generate.add_argument(f"--{role}-prompt", metavar="TEXT", help=f"own prompt of the {role}")
    generate.set_defaults(run=_generate)

    reproduce = commands.add_parser("reproduce", help="draw a picture again from the recipe inside it")
    reproduce.add_argument("file", type=Path, help="a PNG made by this program")
    reproduce.set_defaults(run=_reproduce)

    compose = commands.add_parser("compose", help="put pictures together, or change a layer of what was put together")
    compose.add_argument(
        "layers",
        nargs="*",
        metavar="LAYER",
        help="a picture, the lowest first: a file, or its fields as the tool compose_layers has them: "
        """'{"image": "lamp.png", "anchor": "bottom", "width": 300}'""",
    )
    compose.add_argument("--source", metavar="FILE", help="a png, ora or psd that was composed before: go on from it")
    compose.add_argument(
        "--replace",
        action="append",
        default=[],
        metavar="NAME=FIELDS",
        help="""change a layer of --source: 'lamp={"image": "blue-lamp.png"}'; can be given again""",
    )
    compose.add_argument("--background", metavar="X", help="what lies below: a colour or a file")
    for name, field in Canvas.model_fields.items():
        _add_flag(compose, name, field)
    compose.add_argument("--format", choices=COMPOSED, help="kind of file; default: png, or that of --source")
    compose.add_argument("--name", default="composition", help="beginning of the file's name")
    compose.set_defaults(run=_compose)

    pictures = add_picture_commands(commands, _settings)
    history = add_history_commands(commands, _settings)

    models = commands.add_parser("models", help="list the models; models prepare NAME fetches one")
    models.set_defaults(run=_models)
    # what this parser's flags leave open must not undo what those of `models` have set
    prepare = models.add_subparsers(metavar="prepare").add_parser(
        "prepare", help="fetch a model and its layer files", argument_default=argparse.SUPPRESS
    )
    families = " or ".join(FAMILIES)
    prepare.add_argument("name", metavar="NAME", help=f"a model, or {families} for the family's default base")
    prepare.add_argument(
        "--task", choices=[task.value for task in Task], help="fetch only what this task needs; default: all tasks"
    )
    prepare.add_argument("--verify", action="store_true", help="also check the files that are here already")
    prepare.set_defaults(run=_prepare)

    doctor = commands.add_parser("doctor", help="show what this machine has and what is missing")
    doctor.set_defaults(run=_doctor)

    for command in (serve, generate, reproduce, compose, *pictures, *history, models, prepare, doctor):
        _add_settings(command, taken={action.dest for action in command._actions})  # pyright: ignore[reportPrivateUsage]
    return parser


def _add_settings(parser: argparse.ArgumentParser, taken: set[str]) -> None:
    group = parser.add_argument_group("settings (each also as LAYERDIFFUSE_<NAME> in the environment)")
    for name, field in Settings.model_fields.items():
        if name == "output_dir":
            group.add_argument("-o", "--output", dest=name, metavar="DIR", help=field.description)
        elif name not in taken:
            _add_flag(group, name, field)


def _add_flag(parser: Any, name: str, field: FieldInfo) -> None:
    flag = "--" + name.replace("_", "-")
    names = next((rule.names for rule in field.metadata if isinstance(rule, OneOf)), None)
    kind = field.annotation
    if field.annotation is bool:
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=field.description)
        return
    if typing.get_origin(kind) is typing.Literal:
        names = typing.get_args(kind)
    shown = f"{{{', '.join(names)}}} " if names else ""
    parser.add_argument(flag, metavar="X", help=f"{shown}{field.description or ''}".replace("%", "%%"))


def _settings(options: argparse.Namespace) -> Settings:
    given = {name: value for name in Settings.model_fields if (value := getattr(options, name, None)) is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        raise InvalidRequest(explain(error)) from None


def _request(options: argparse.Namespace) -> GenerateRequest:
    given: dict[str, Any] = {
        name: value
        for name in GenerateRequest.model_fields
        if name not in ("inputs", "layer_prompts") and (value := getattr(options, name, None)) is not None
    }
    if "want" in given:
        given["want"] = given["want"].split(",")
    given["inputs"] = {role: Path(value) for role in ROLES if (value := getattr(options, role))}
    given["layer_prompts"] = {role: value for role in ROLES if (value := getattr(options, f"{role}_prompt"))}
    return validated(GenerateRequest, given)


def _serve(options: argparse.Namespace) -> int:
    from layerdiffuse_mcp.server import app

    settings = _settings(options)
    if options.http:
        app.serve_http(settings, options.host, options.port, options.token, options.allowed_host)
        return 0
    return app.serve_stdio(settings)


def _generate(options: argparse.Namespace) -> int:
    from layerdiffuse_mcp.cli import commands as console

    return console.generate(_request(options), _settings(options))


def _reproduce(options: argparse.Namespace) -> int:
    from layerdiffuse_mcp.cli import commands as console

    return console.reproduce(options.file, _settings(options))


def _compose(options: argparse.Namespace) -> int:
    from layerdiffuse_mcp.cli.compositions import compose

    layers = [text if text.lstrip().startswith("{") else {"image": text} for text in options.layers]
    replace = dict(text.partition("=")[::2] for text in options.replace)
    canvas = {name: value for name in Canvas.model_fields if (value := getattr(options, name)) is not None}
    return compose(
        [_fields(layer, "LAYER") if isinstance(layer, str) else layer for layer in layers],
        {name: _fields(text, "--replace") for name, text in replace.items()},
        canvas,
        options,
        _settings(options),
    )


def _fields(text: str, what: str) -> dict[str, Any]:
    """The fields of a layer, written as JSON."""
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise InvalidRequest(f"{what} {quoted(text)} is no JSON object ({error}).") from None
    if not isinstance(fields, dict):
        raise InvalidRequest(f'{what} {quoted(text)} is no JSON object: give fields as {{"x": 40}}.')
    return cast(dict[str, Any], fields)


def _models(options: argparse.Namespace) -> int:
    from layerdiffuse_mcp.cli import commands as console

    return console.models(_settings(options))


def _prepare(options: argparse.Namespace) -> int:
    from layerdiffuse_mcp.cli import commands as console

    task = Task(options.task) if "task" in options else None
    return console.prepare(options.name, task, _settings(options), verify="verify" in options)


def _doctor(options: argparse.Namespace) -> int:
    from layerdiffuse_mcp.cli import commands as console

    return console.doctor(_settings(options))
