"""JSON schemas as clients see them: no references, no titles, and nothing so deep that agents fill it in wrongly.

accepted = inlined(model.model_json_schema())
shown = shallow(accepted)                    # an object's fields below DEEPEST stand in its description
"""

from collections.abc import Callable, Mapping
from typing import Any

DEEPEST = 3
"""Depth of the innermost parameters that have a schema: canvas.size has 2, and an item of layers its fields at 3."""
Schema = Mapping[str, Any]


def inlined(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema with what it refers to in its place, and without titles that say a name again; its models hold no
    circle.
    """
    definitions = schema.get("$defs", {})

    def resolved(node: Any) -> Any:
        match node:
            case {"$ref": reference, **rest}:
                return resolved({**definitions[reference.removeprefix("#/$defs/")], **rest})
            case {**items}:
                return {name: resolved(value) for name, value in items.items() if not _is_title(name, value)}
            case [*items]:
                return [resolved(value) for value in items]
            case _:
                return node

    return resolved({name: value for name, value in schema.items() if name != "$defs"})


def _is_title(name: str, value: Any) -> bool:
    """Whether this is a schema's title, and no property of that name."""
    return name == "title" and isinstance(value, str)


def brief(schema: Schema) -> dict[str, Any]:
    """A result's schema without defaults that are empty: what is empty is left out of results."""
    shown = {name: value for name, value in schema.items() if name != "default" or value}
    return _with_parts(shown, brief)


def shallow(schema: Schema, depth: int = 0) -> dict[str, Any]:
    """A schema in which objects at `DEEPEST` have their fields in their description, with bounds and defaults."""
    if depth < DEEPEST or "properties" not in schema:
        return _with_parts(schema, lambda part: shallow(part, depth + 1))
    return {"type": "object", "description": in_words(schema)}


def in_words(schema: Schema) -> str:
    """A description that holds what an object's fields are: `A shadow {dx: To the right, default 0; ...}`."""
    said = [schema["description"], *_limits(schema)]
    if "properties" in schema:
        required = schema.get("required", ())
        fields = [
            f"{name}{' (required)' * (name in required)}: {in_words(field)}"
            for name, field in schema["properties"].items()
        ]
        said[0] += f" {{{'; '.join(fields)}}}"
    return ", ".join(said)


def _limits(schema: Schema) -> list[str]:
    said = [", ".join(map(str, schema["enum"]))] if "enum" in schema else []
    low, high = schema.get("minimum", schema.get("exclusiveMinimum")), schema.get("maximum")
    said += [f"{low} to {high}"] if low is not None and high is not None else []
    return said + ([f"default {schema['default']}"] if schema.get("default") else [])


def _with_parts(schema: Schema, change: Callable[[Schema], dict[str, Any]]) -> dict[str, Any]:
    """A schema whose fields and items are changed."""
    shown = {**schema}
    if "properties" in schema:
        shown["properties"] = {name: change(field) for name, field in schema["properties"].items()}
    if "items" in schema:
        shown["items"] = change(schema["items"])
    return shown
