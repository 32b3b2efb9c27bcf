"""What was given, as it was meant: a lone value for a list of one, a name in other case, a word for an object.

    class Canvas(Lenient):
        alone = "size"

    class Poster(Lenient):
        canvas: Canvas
        layers: list[str]
        format: Literal["png", "webp"] = "png"

    Poster.model_validate({"canvas": "64x64", "layers": "lamp.png", "format": "PNG"})

Tools, command line and Python API take their objects so; schemas show the one form that all of it comes to. Names in
a table (`api.fields.OneOf`) are as lenient by themselves.
"""

import inspect
from collections.abc import Mapping
from enum import Enum
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, model_validator

from layerdiffuse_mcp.api.choices import find_sampler
from layerdiffuse_mcp.wording import quoted, spelled

_LONE = (str, int, float, Path, Mapping, BaseModel)


class Lenient(BaseModel):
    """An object that somebody gives; `alone` is the field that a lone value is taken for, and true is all defaults."""

    alone: ClassVar[str | None] = None

    @model_validator(mode="before")
    @classmethod
    def _meant(cls, given: Any) -> Any:
        if isinstance(given, Mapping):
            return as_meant(cls, given)
        if isinstance(given, cls):
            return given
        if given is True and not _required(cls):
            return {}
        if cls.alone and type(given) in _lone_kinds(cls, cls.alone):
            return {cls.alone: given}
        own = [name for name in inspect.get_annotations(cls) if name in cls.model_fields] or [*cls.model_fields]
        shown = ", ".join(f'"{name}": ...' for name in _required(cls) or ([cls.alone] if cls.alone else own[:2]))
        raise ValueError(f"must be an object, as in {{{shown}}} (got {quoted(given)})")


def as_meant(kind: type[BaseModel], given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a model as they were meant; whatever cannot be told stays as it is.

    Raises:
        ValueError: the sampler names a schedule, and another is given.
    """
    shapes = _shapes(kind)
    meant = {name: _value(shapes[name], value) if name in shapes else value for name, value in given.items()}
    if shapes.keys() >= {"sampler", "schedule"} and isinstance(sampler := meant.get("sampler"), str):
        meant |= _sampling(sampler, meant.get("schedule"))
    return meant


class _Shape(NamedTuple):
    """What a field takes: whether a list, and of it or alone which model, and which names."""

    is_list: bool
    is_object: bool
    names: Mapping[str, Any]


@cache
def _shapes(kind: type[BaseModel]) -> dict[str, _Shape]:
    return {name: _shape(field.annotation) for name, field in kind.model_fields.items()}


def _shape(annotation: Any) -> _Shape:
    kind = _bare(annotation)
    origin, parts = get_origin(kind), get_args(kind)
    if origin is list or (origin is tuple and parts[-1] is ...):
        return _shape(parts[0])._replace(is_list=True)
    if origin is Literal:
        names = {spelled(name): name for name in parts if isinstance(name, str)}
    elif isinstance(kind, type) and issubclass(kind, Enum):
        names = {spelled(str(one.value)): one for one in kind}
    else:
        names = {}
    return _Shape(False, isinstance(kind, type) and issubclass(kind, Lenient), names)


def _bare(annotation: Any) -> Any:
    """A type without what is said of it, and without null."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _bare(get_args(annotation)[0])
    if origin in (Union, UnionType):
        kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
        return _bare(kinds[0]) if len(kinds) == 1 else annotation
    return annotation


def _value(shape: _Shape, value: Any) -> Any:
    if not shape.is_list:
        return _one(shape, value)
    if isinstance(value, list | tuple):
        return [_one(shape, item) for item in value]
    return [_one(shape, value)] if isinstance(value, _LONE) and not isinstance(value, bool) else value


def _one(shape: _Shape, value: Any) -> Any:
    if shape.is_object:
        return None if value is False else value
    return shape.names.get(spelled(value), value) if shape.names and isinstance(value, str) else value


def _lone_kinds(kind: type[BaseModel], field: str) -> tuple[type, ...]:
    """The types of lone values that a field takes."""
    return (str,) if _bare(kind.model_fields[field].annotation) is str else (int, float)


def _required(kind: type[BaseModel]) -> list[str]:
    return [name for name, field in kind.model_fields.items() if field.is_required()]


def _sampling(sampler: str, schedule: Any) -> dict[str, Any]:
    """A sampler by its name in the table, and the schedule that is named with it."""
    try:
        row, named = find_sampler(sampler)
    except KeyError:
        return {}
    if named is None:
        return {"sampler": row.name}
    if schedule is not None and spelled(str(schedule)) != spelled(named):
        raise ValueError(
            f"sampler {quoted(sampler)} is {row.name} with the schedule {named}, and schedule is {quoted(schedule)}: "
            f"give sampler {quoted(row.name)} and one schedule"
        )
    return {"sampler": row.name, "schedule": named}
