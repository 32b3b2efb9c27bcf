"""Flags that are made from the fields of a model, so that a request or a setting is described in one place.

for name, field in GenerateRequest.model_fields.items():
    add_flag(parser, name, field)
add_output(parser)                  # -o/--output, for a command that writes pictures or looks for them
settings = settings_of(options)     # the environment, and what was given for this one command
"""

import argparse
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from layerdiffuse_mcp.api.fields import OneOf, explain
from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.families.spec import ROLES
from layerdiffuse_mcp.installed import program
from layerdiffuse_mcp.settings import Settings

Commands = Any  # argparse's subparsers, whose type has no public name
Run = Callable[[argparse.Namespace], int]

SETTING = "setting:"
"""What the destination of a flag begins with that sets a setting."""


def add_flag(parser: Any, name: str, field: FieldInfo, dest: str | None = None, *, described: str = "") -> None:
    """Add the flag of a field: its values and its description. `described` takes the place of the latter."""
    flag = "--" + name.replace("_", "-")
    text, names = _described(field)
    text = (described or text).replace("%", "%%")
    if field.annotation is bool:
        parser.add_argument(
            flag, dest=dest or name, action=argparse.BooleanOptionalAction, default=None, help=text
        )  # fmt: skip
        return
    shown = f"{{{', '.join(names)}}} " if names else ""
    parser.add_argument(flag, dest=dest or name, metavar="X", help=f"{shown}{text}")


def add_roles(parser: Any) -> None:
    """Add the flags for the pictures that layer tasks start from, and for the layers' own prompts."""
    for role in ROLES:
        parser.add_argument(f"--{role}", metavar="FILE", help=f"the {role} picture that the task starts from")
        parser.add_argument(f"--{role}-prompt", metavar="TEXT", help=f"own prompt of the {role}")


def add_output(parser: Any) -> None:
    """Add -o/--output, the folder of the pictures that this command writes or looks for."""
    field = Settings.model_fields["output_dir"]
    parser.add_argument("-o", "--output", dest=f"{SETTING}output_dir", metavar="DIR", help=field.description)


def add_settings(parser: Any) -> None:
    """Add a flag for every setting."""
    group = parser.add_argument_group("settings (each also as LAYERDIFFUSE_<NAME> in the environment)")
    for name, field in Settings.model_fields.items():
        if name == "output_dir":
            add_output(group)
        else:
            add_flag(group, name, field, f"{SETTING}{name}")


def given_fields(options: argparse.Namespace, names: typing.Iterable[str]) -> dict[str, Any]:
    """Those of the fields whose flags were given."""
    return {name: value for name in names if (value := getattr(options, name, None)) is not None}


def given_roles(options: argparse.Namespace) -> dict[str, Any]:
    """The fields `inputs` and `layer_prompts` of a request, as the flags of `add_roles` say."""
    inputs = {role: Path(value) for role in ROLES if (value := getattr(options, role))}
    prompts = {role: value for role in ROLES if (value := getattr(options, f"{role}_prompt"))}
    return {"inputs": inputs, "layer_prompts": prompts}


def settings_of(options: argparse.Namespace) -> Settings:
    """The settings for this command.

    Raises:
        InvalidRequest: one of them, here or in the environment, cannot be used.
    """
    given = {
        name.removeprefix(SETTING): value
        for name, value in vars(options).items()
        if name.startswith(SETTING) and value is not None
    }
    try:
        return Settings(**given)
    except ValidationError as error:
        raise InvalidRequest(
            f"A setting cannot be used: {explain(error)} `{program()} settings --help` says where each stands."
        ) from None


def picture_file(given: str) -> Path:
    """The path of a file that is there; raises ImageError."""
    from layerdiffuse_mcp.images.read import opened_file

    with opened_file(Path(given)):
        return Path(given)


def _described(field: FieldInfo) -> tuple[str, Sequence[str]]:
    """A field's description and the names that it allows, wherever its annotation has them."""
    text, names = field.description or "", _names(field.annotation, field.metadata)
    for part in typing.get_args(field.annotation):  # of `Annotated[...] | None`
        if typing.get_origin(part) is typing.Annotated:
            inner = FieldInfo.from_annotation(part)
            text, names = text or inner.description or "", names or _names(inner.annotation, inner.metadata)
    return text, names


def _names(kind: Any, metadata: Sequence[Any]) -> Sequence[str]:
    if typing.get_origin(kind) is typing.Literal:
        return typing.get_args(kind)
    return next((rule.names for rule in metadata if isinstance(rule, OneOf)), ())
