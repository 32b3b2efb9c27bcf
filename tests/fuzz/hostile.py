"""What a careless or hostile client sends: values that fit a tool's published schema, and values that fit none."""

import math
from typing import Any

from hypothesis import strategies as st

MOST = 300
"""The largest number drawn as one that fits: pictures stay small, and so the tests quick."""

PROMPTS = ("steps 1", "steps 2", "print", "killed", "broken", "refused", "a red apple")
"""What the rehearsal engine obeys; see tests/programs/rehearsal.py."""


def nested(depth: int) -> list[Any]:
    """Lists within lists."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


HOSTILE: tuple[Any, ...] = (
    None, True, "", " ", "\0", "a\0b.png", "\ud800", "job-\udfff-1", "🜚" * 40, "\u202egnp.exe", "a" * 1_000_000,
    "../" * 2000, "/dev/zero", "/proc/self/mem", "~nobody/x.png", "file:///etc/passwd", "%00", "layerdiffuse://images/",
    "${HOME}/x", "job-0-1", "none", "NaN", "1e999", "²", "0x10", "-1",
    math.nan, math.inf, -math.inf, 1e308, 5e-324, -0.0, 0.5, -1, 0, 1, 2**31, 2**53 + 1, 2**63, 2**64, 10**4000,
    [], {}, [None], {"": ""}, {"__class__": "x"}, nested(100), [1] * 100_000, ["x"] * 65, "[]", "{}",
)  # fmt: skip


def fitting(schema: dict[str, Any], paths: tuple[str, ...]) -> st.SearchStrategy[Any]:
    """Values that fit a published schema; where a picture or a file is wanted, one of `paths`."""
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    match schema.get("type"):
        case "string":
            words = schema.get("description", "").lower()
            if "path" in words or "picture" in words:
                return st.sampled_from(paths)
            return st.sampled_from(PROMPTS) | st.text(max_size=40)
        case "integer":
            low = schema.get("minimum", 0)
            return st.integers(low, max(low, min(schema.get("maximum", MOST), MOST)))
        case "number":
            low, high = schema.get("minimum", schema.get("exclusiveMinimum", 0)), schema.get("maximum", 3)
            return st.floats(low, min(high, 3), exclude_min="exclusiveMinimum" in schema)
        case "boolean":
            return st.booleans()
        case "array":
            return st.lists(fitting(schema.get("items", {}), paths), min_size=1, max_size=3)
        case "object":
            return arguments(schema, paths)
        case _:
            return st.sampled_from(HOSTILE)


def arguments(schema: dict[str, Any], paths: tuple[str, ...]) -> st.SearchStrategy[dict[str, Any]]:
    """Arguments that fit a tool: all that it requires, some of the others."""
    properties: dict[str, Any] = schema.get("properties", {})
    required = schema.get("required", ())
    return st.fixed_dictionaries(
        {name: fitting(properties[name], paths) for name in required},
        optional={name: fitting(inner, paths) for name, inner in properties.items() if name not in required},
    )


def spoilt(schema: dict[str, Any], paths: tuple[str, ...]) -> st.SearchStrategy[dict[str, Any]]:
    """Arguments of which up to three are hostile, names that the tool does not know among them."""
    names = st.sampled_from([*schema.get("properties", {}), "unknown", "ctx", "🜚", ""])
    spoiling = st.dictionaries(names, st.sampled_from(HOSTILE), max_size=3)
    return st.tuples(arguments(schema, paths), spoiling).map(lambda both: both[0] | both[1])
