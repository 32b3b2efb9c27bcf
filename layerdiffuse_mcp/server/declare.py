"""How a function becomes a tool: small schemas, true annotations, errors that teach.

Differs from the SDK's own way in three points: schemas are trimmed to what an agent
reads (the whole catalogue has to fit into a small context), a name that is no parameter
is refused rather than ignored, and our errors reach the agent as they were written.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError, UnexpectedToolError
from mcp.server.mcpserver.tools import Tool
from mcp.server.mcpserver.utilities.func_metadata import FuncMetadata
from mcp_types import ToolAnnotations
from pydantic import BaseModel, ValidationError

from layerdiffuse_mcp.errors import LayerDiffuseError, quoted
from layerdiffuse_mcp.requests import explain, near

# What a hint is when it is left out: not read-only, destructive, not idempotent, open to the world.
READS = ToolAnnotations(read_only_hint=True, open_world_hint=False)
WRITES = ToolAnnotations(read_only_hint=False, destructive_hint=False, open_world_hint=False)
FETCHES = ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=True, open_world_hint=True)
FREES = ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=True, open_world_hint=False)
STOPS = ToolAnnotations(read_only_hint=False, destructive_hint=True, idempotent_hint=True, open_world_hint=False)

NOT_SHOWN = frozenset({"title", "$defs", "minLength", "maxLength"})
"""Words of a schema that agents do not need; the limits hold nevertheless."""
LONG_ENUM = 2
"""Enums of more names are spelt out once in the catalogue."""
TELLING = ("status", "job_id", "images")
"""Fields of a job's result that every schema names."""


@dataclass(frozen=True)
class Declaration:
    """A row of the table of tools.

    `result` is what the tool's structured content holds. `levels` is how deep its schema goes;
    where a tool has the result of another one, 0 names the main fields. `defaults` are shown
    for parameters whose own default is None. Tools with one `signature` share its model of
    arguments, of which each shows and accepts those that it `takes`.
    """

    function: Callable[..., Any]
    title: str
    annotations: ToolAnnotations
    result: type[BaseModel]
    defaults: Mapping[str, Any] = field(default_factory=lambda: dict[str, Any]())
    levels: int = 3
    signature: Callable[..., Any] | None = None
    takes: tuple[str, ...] = ()
    required: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """The tool's name."""
        return self.function.__name__

    def tool(self, base: Tool, result: Mapping[str, Any]) -> "PlainTool":
        """The tool as the server takes it, from that of its signature and the schema of its result."""
        given = trimmed(base.parameters)
        properties = {name: dict(given["properties"][name]) for name in self.takes or given["properties"]}
        for name, default in self.defaults.items():
            properties[name]["default"] = default
        required = [name for name in properties if name in self.required or name in given.get("required", ())]
        output = trimmed(result, levels=self.levels or 1)
        if not self.levels:
            output["properties"] = {name: {"type": output["properties"][name]["type"]} for name in TELLING}
        return PlainTool(
            fn=self.function,
            name=self.name,
            title=self.title,
            description=" ".join((self.function.__doc__ or "").split()),
            parameters={"type": "object", "properties": properties, **({"required": required} if required else {})},
            fn_metadata=FuncMetadata(arg_model=base.fn_metadata.arg_model, output_schema=output),
            is_async=True,
            context_kwarg=base.context_kwarg,
            annotations=self.annotations,
        )


def catalogue(rows: Sequence[Declaration]) -> list[Tool]:
    """The tools of a table, each long enum spelt out in the first tool that has it."""
    results = {model: model.model_json_schema() for model in {row.result for row in rows}}
    bases: dict[Callable[..., Any], Tool] = {}
    tools: list[Tool] = []
    spelt: dict[tuple[str, ...], str] = {}
    for row in rows:
        signature = row.signature or row.function
        if signature not in bases:
            bases[signature] = Tool.from_function(signature, context_kwarg="ctx", structured_output=False)
        tool = row.tool(bases[signature], results[row.result])
        for shown in tool.parameters["properties"].values():
            names = tuple(shown.get("enum", ()))
            if len(names) > LONG_ENUM and spelt.setdefault(names, tool.name) != tool.name:
                del shown["enum"]
                shown["description"] = f"As {spelt[names]}"
        tools.append(tool)
    return tools


class PlainTool(Tool):
    """A tool whose errors are one plain message: what was wrong, what is allowed, what to do."""

    async def run(self, arguments: dict[str, Any], context: Context[Any, Any], convert_result: bool = False) -> Any:
        """Run the tool; raises ToolError with our own text for everything that we foresaw."""
        allowed = list(self.parameters["properties"])
        for name in arguments:
            if name not in allowed:
                raise ToolError(f"{self.name} has no parameter {quoted(name)}. {near(name, allowed)}")
        missing = [name for name in self.parameters.get("required", ()) if arguments.get(name) is None]
        if missing:
            raise ToolError(f"{self.name} needs {' and '.join(missing)}. {self.description}")
        try:
            return await super().run(arguments, context, convert_result)
        except ToolError as error:
            match error.__cause__:
                case LayerDiffuseError() as cause:
                    raise ToolError(str(cause)) from cause
                case ValidationError() as cause if not isinstance(error, UnexpectedToolError):
                    raise ToolError(explain(cause)) from cause
                case _:
                    raise


def trimmed(schema: Mapping[str, Any], levels: int = 99) -> dict[str, Any]:
    """A schema without generated titles, null alternatives, references and what lies deeper than `levels`.

    A parameter that may be null may as well be left out, so agents are shown the one form;
    results leave out what is null.
    """
    return _trimmed(schema, cast(dict[str, Any], schema.get("$defs", {})), levels)


def _trimmed(
    schema: Mapping[str, Any], definitions: Mapping[str, Any], levels: int, top: bool = True
) -> dict[str, Any]:
    if "$ref" in schema:
        target = definitions[str(schema["$ref"]).rpartition("/")[2]]
        described = target if "properties" in target else {k: v for k, v in target.items() if k != "description"}
        rest = {key: value for key, value in schema.items() if key != "$ref"}
        return _trimmed({**described, **rest}, definitions, levels, top)
    forms = [form for form in schema.get("anyOf", ()) if form != {"type": "null"}]
    if len(forms) == 1:
        rest = {key: value for key, value in schema.items() if key != "anyOf"}
        return _trimmed({**forms[0], **rest}, definitions, levels, top)
    result: dict[str, Any] = {}
    for key, value in schema.items():
        match key:
            case "properties" if levels > 0:
                result[key] = {
                    name: _trimmed(inner, definitions, levels - 1, top=False) for name, inner in value.items()
                }
            case "items" if levels > 0:
                result[key] = _trimmed(value, definitions, levels - 1, top=False)
            case "properties" | "items" | "required" if levels <= 0:
                pass
            case "required" if levels in (1, 2) and not top:
                pass
            case "additionalProperties" if not isinstance(value, bool) or value:
                pass
            case "default" if value is None or value == []:
                pass
            case "description" if "properties" in schema:
                pass
            case _ if key not in NOT_SHOWN:
                result[key] = value
            case _:
                pass
    return result
