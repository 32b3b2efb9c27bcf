"""Writes docs/tools.md: every tool as its schema says it, and a call of it.

    python docs/tools.py             # writes the page
    python docs/tools.py --check     # exit status 1 when it is not what the schemas say today

Nothing but the calls stands here: `tests/test_docs.py` sends each of them to a server. What several tools share, and
what a job returns, is described once, at the end.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from layerdiffuse_mcp.server.tools import TOOLS

PAGE = Path(__file__).parent / "tools.md"
Schema = Mapping[str, Any]

CALLS: dict[str, dict[str, Any]] = {
    "generate_transparent": {"prompt": "a red apple", "count": 4, "options": {"steps": 30}},
    "edit_transparent": {"prompt": "a green apple", "image": "apple.png", "options": {"strength": 0.7}},
    "upscale_transparent": {"prompt": "a red apple", "image": "apple.png", "scale": 2},
    "generate_layers": {
        "prompt": "a cat on a beach",
        "options": {"layer_prompts": {"foreground": "a cat", "background": "a beach"}},
    },
    "generate_background_from_foreground": {"prompt": "an apple on a meadow", "foreground": "apple.png"},
    "generate_foreground_from_background": {
        "prompt": "a cat in the snow",
        "background": "photo.png",
        "want": ["foreground"],
    },
    "extract_layer": {
        "prompt": "a cat",
        "blended": "cat-in-room.png",
        "background": "room.png",
        "options": {"model": "sdxl"},
    },
    "decompose_image": {"image": "poster.png", "prompt": "a poster of a fair", "layers": 3},
    "generate_set": {
        "subjects": ["a red apple", "a fish", "a star"],
        "style": "flat",
        "cell": {"size": "64x64", "anchor": "bottom"},
    },
    "redraw_image": {"image": "job-863032aa-1", "changes": {"seed": 9, "options": {"sampler": "Euler a"}}},
    "decode_transparent_latent": {"latent": "apple.safetensors"},
    "encode_transparent_image": {"image": "apple.png", "output": {"name": "apple"}},
    "compose_layers": {
        "layers": [
            {"image": "photo.png"},
            {"image": "apple.png", "name": "apple", "anchor": "bottom", "width": 200, "shadow": {}},
        ],
        "output": {"format": "psd", "name": "poster"},
    },
    "cut_out": {"image": "mug.png", "background": "white"},
    "make_sheet": {
        "images": [{"image": "walk-1.png", "name": "walk/1"}, {"image": "walk-2.png", "name": "walk/2"}],
        "cell": "128x128",
        "anchor": "bottom",
    },
    "inspect_image": {"image": "apple.png", "background": "#0a3d62"},
    "find_images": {"words": "red apple", "since": "7d", "verdict": "good"},
    "delete_images": {"images": ["job-863032aa-1"], "dry_run": True},
    "get_job": {"job_ids": ["job-863032aa"], "wait_seconds": 120},
    "cancel_job": {"job_id": "job-863032aa"},
    "list_jobs": {"status": "running"},
    "list_models": {"subjects": "apple"},
    "prepare_model": {"model": "juggernaut-xl-v6", "task": "extract_foreground"},
    "unload_models": {},
    "server_status": {},
}
"""A call of each tool. Files lie in the project, `job-863032aa` stands for the id that an earlier call returned."""

HEAD = """\
# The tools

Written by `python docs/tools.py` from the schemas that the server sends. A picture is given as a path, or as the id
that an earlier call returned for it (`job-863032aa-1`). What is left out is as the authors of the model and of the
layer files advise. What several tools share is described once: [parameters of drawing tools](#shared-parameters), and
[what a job returns](#what-a-job-returns). Each result also says everything in words, with absolute paths, shows one
small preview, and links to the files.

| tool | |
|---|---|
"""
TYPES = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false", "array": "list"}
JOB = "a job's result"
SHARED = ("size", "seed", "count", "options", "output")
"""Parameters of drawing tools, as `generate_transparent` has them."""


def page() -> str:
    """The page."""
    tools = {row.name: row.tool for row in TOOLS}
    drawing = tools["generate_transparent"]
    common = {name: drawing.accepted["properties"][name] for name in SHARED}
    job: Schema = tools["generate_set"].output_schema or {}
    parts = [HEAD + "".join(f"| [`{name}`](#{name}) | {tool.title} |\n" for name, tool in tools.items())]
    for name, tool in tools.items():
        parts.append(f"## {name}\n\n{tool.description}\n\n{parameters(tool.accepted, common)}")
        parts.append(f"```json\n{call(CALLS[name])}\n```\n")
        returned = tool.output_schema or {}
        parts.append(of_job(returned, job) if "job_id" in returned["properties"] else fields("returns", returned, job))
    parts.append(f"## Shared parameters\n\n{parameters({'properties': common}, {})}")
    parts.append(f"## What a job returns\n\n{job['description']}\n\n" + fields("field", job, {}))
    return "\n".join(parts)


def parameters(schema: Schema, common: Mapping[str, Schema]) -> str:
    """The table of what a tool takes; what is in `common` just as well is only named."""
    properties = schema["properties"]
    if not properties:
        return "It takes no parameters.\n"
    same = [name for name in properties if properties[name] == common.get(name)]
    rows = [
        row
        for name in properties
        if name not in same
        for row in parameter(name, name, properties[name], schema, common)
    ]
    if same:
        rows.append((", ".join(f"`{name}`" for name in same), "", "[as everywhere](#shared-parameters)"))
    return table("parameter", rows)


def parameter(
    shown: str, name: str, schema: Schema, parent: Schema, common: Mapping[str, Schema]
) -> Iterator[tuple[str, str, str]]:
    """Rows of a parameter and what stands in it: name, form, description."""
    inside = schema if "properties" in schema else schema.get("items", {})
    properties = inside.get("properties", {})
    said, known = schema.get("description", ""), common.get(name, {}).get("properties", {})
    same = [key for key in properties if properties[key] == known.get(key)]
    if same:
        which = f"all of [{name}](#shared-parameters)"
        if len(same) < len(known):
            which = f"of [{name}](#shared-parameters) {', '.join(f'`{key}`' for key in same)}"
        said += f"; {which}"
    yield f"`{shown}`", form(schema, required=name in parent.get("required", ())), said + one_of(schema)
    dots = f"{shown}[]." if schema.get("type") == "array" else f"{shown}."
    for key in properties:
        if key not in same:
            yield from parameter(dots + key, key, properties[key], inside, common)


def form(schema: Schema, *, required: bool) -> str:
    """What kind of value it is, and its bounds."""
    said = TYPES.get(schema.get("type", ""), "object")
    low, high = schema.get("minimum", schema.get("exclusiveMinimum")), schema.get("maximum")
    if low is not None and high is not None:
        said += f", {'above ' if 'exclusiveMinimum' in schema else ''}{low} to {high}"
    if "maxItems" in schema:
        said += f", at most {schema['maxItems']}"
    if (default := schema.get("default")) not in (None, "", {}, []):
        said += f", else `{json.dumps(default)}`"
    return f"{said}, **required**" if required else said


def one_of(schema: Schema) -> str:
    """A sentence that lists the values that are allowed, if they are listed."""
    return ". One of " + ", ".join(f"`{value}`" for value in schema["enum"]) if "enum" in schema else ""


def of_job(returned: Schema, job: Schema) -> str:
    """A sentence on a result that is a job's, or the part of it that the tool has."""
    lacking = ", ".join(f"`{name}`" for name in job["properties"] if name not in returned["properties"])
    return f"It returns [{JOB}](#what-a-job-returns){' without ' * bool(lacking)}{lacking}.\n"


def fields(title: str, schema: Schema, job: Schema) -> str:
    """The table of what a result holds."""
    return table(title, list(_fields("", schema, job)))


def _fields(before: str, schema: Schema, job: Schema) -> Iterator[tuple[str, str, str]]:
    for name, field in schema.get("properties", {}).items():
        inside = field if "properties" in field else field.get("items", {})
        is_job = bool(job) and inside.get("properties") == job["properties"]
        said = field.get("description", "") + ("; [its fields](#what-a-job-returns)" if is_job else "")
        yield f"`{before}{name}`", TYPES.get(field.get("type", ""), "object"), said + one_of(field)
        if not is_job:
            yield from _fields(f"{before}{name}{'[]' if field.get('type') == 'array' else ''}.", inside, job)


def table(title: str, rows: list[tuple[str, str, str]]) -> str:
    """A table of three columns."""
    lines = [f"| {title} | | |", "|---|---|---|"]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def call(arguments: Mapping[str, Any]) -> str:
    """The arguments of a call as JSON, on one line where that is short."""
    line = json.dumps(arguments)
    if len(line) <= 110:
        return line
    return "{\n" + ",\n".join(f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in arguments.items()) + "\n}"


def main(arguments: list[str]) -> int:
    """Write or check the page."""
    if "--check" in arguments:
        return 0 if PAGE.exists() and PAGE.read_text() == page() else 1
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
