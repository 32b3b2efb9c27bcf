"""How a function becomes a tool: the SDK's own way, with strict names and our errors as written.

    TOOLS = (Row(list_models, "List models", READS), ...)
    server = MCPServer(..., tools=[row.tool for row in TOOLS])

A tool's parameters, bounds and descriptions are those of the function's annotations; its result's schema is
that of the model in `Annotated[CallToolResult, Model]`; its description is the docstring.
Four points differ from the SDK: a name that is no parameter is refused rather than ignored, null means left out, text
that happens to be JSON stays text, and an error reaches the agent without a prefix. Schemas hold no references, which
not every client follows, and say in words what lies deeper than agents fill in well (`server.schemas`).
"""

import errno
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError, UnexpectedToolError
from mcp.server.mcpserver.tools import Tool
from mcp.server.mcpserver.utilities.func_metadata import ArgModelBase, FuncMetadata
from mcp_types import ToolAnnotations
from pydantic import BaseModel, Field, ValidationError

from layerdiffuse_mcp.api.fields import explain, near
from layerdiffuse_mcp.api.lenient import as_meant
from layerdiffuse_mcp.errors import LayerDiffuseError
from layerdiffuse_mcp.server.apps import SHOWN
from layerdiffuse_mcp.server.icons import icons_for
from layerdiffuse_mcp.server.schemas import brief, inlined, shallow
from layerdiffuse_mcp.wording import printable, quoted, short

# What a hint is when it is left out: not read-only, destructive, not idempotent, open to the world.
READS = ToolAnnotations(read_only_hint=True, open_world_hint=False)
WRITES = ToolAnnotations(read_only_hint=False, destructive_hint=False, open_world_hint=False)
FETCHES = ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=True, open_world_hint=True)
FREES = ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=True, open_world_hint=False)
STOPS = ToolAnnotations(read_only_hint=False, destructive_hint=True, idempotent_hint=True, open_world_hint=False)
SHORTAGES = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
"""Why the system opens nothing more, not even a module that is imported late."""


@dataclass(frozen=True, eq=False)
class Row:
    """A row of the table of tools."""

    function: Callable[..., Any]
    title: str
    annotations: ToolAnnotations
    shown: bool = False
    """Whether the viewer shows its results."""

    @property
    def name(self) -> str:
        """The tool's name."""
        return self.function.__name__

    @functools.cached_property
    def tool(self) -> "StrictTool":
        """The tool as servers take it; all of a process share it, for its schemas take long to make."""
        description = " ".join((self.function.__doc__ or "").split())
        made = StrictTool.from_function(
            self.function,
            title=self.title,
            description=description,
            annotations=self.annotations,
            icons=icons_for(self.function.__module__.rpartition(".")[2]),
            meta=SHOWN if self.shown else None,
        )
        made.accepted = {"required": [], "additionalProperties": False, **inlined(made.parameters)}
        made.parameters = shallow(made.accepted)
        return made


class AsMeant(FuncMetadata):
    """The SDK's reading of arguments, but for text: that which happens to be JSON stays text. All are taken as meant.

    For clients that send objects and lists as JSON within a string the SDK reads any string so unless its parameter is
    nothing but `str`. `texts`: the parameters that are text.
    """

    texts: frozenset[str]

    def pre_parse_json(self, data: dict[str, Any]) -> dict[str, Any]:
        """The arguments, with objects and lists that came as text read, and as they were meant."""
        read = super().pre_parse_json(data) | {name: data[name] for name in self.texts & data.keys()}
        return as_meant(self.arg_model, read)


@functools.cache
def output_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The schema of a result, as the SDK makes it; once for all tools that return it, for the start waits for it."""
    return brief(inlined(FuncMetadata(arg_model=ArgModelBase, output_model=model).output_schema or {}))


class StrictTool(Tool):
    """A tool whose errors are one plain message: what was wrong, what is allowed, what to do.

    `accepted` is the schema of its parameters at any depth; `parameters` is what clients see of it.
    """

    accepted: dict[str, Any] = Field(default={}, exclude=True)

    @classmethod
    def from_function(cls, *args: Any, **options: Any) -> "StrictTool":
        """As the SDK's; it makes one of this class."""
        made = cast(StrictTool, super().from_function(*args, **options, structured_output=False))
        [model] = made.fn.__annotations__["return"].__metadata__
        shapes = made.parameters["properties"]
        made.fn_metadata = AsMeant(
            arg_model=made.fn_metadata.arg_model,
            output_schema=output_schema(model),
            output_model=model,
            texts=frozenset(name for name in shapes if shapes[name].get("type") == "string"),
        )
        return made

    async def run(self, arguments: dict[str, Any], context: Context[Any, Any], convert_result: bool = False) -> Any:
        """Run the tool; raises ToolError with our own text for everything that we foresaw."""
        given = _without_nulls(self.fn_metadata.pre_parse_json(arguments), self.accepted)
        self._check_names(arguments, self.accepted, "")
        self._check_names(given, self.accepted, "")
        allowed = self.accepted["properties"]
        if missing := [name for name in self.accepted["required"] if name not in given]:
            wanted = "; ".join(f"{name}: {allowed[name]['description']}" for name in missing)
            raise ToolError(f"{self.name} needs {' and '.join(missing)}. Required is {wanted}.")
        try:
            return await super().run(given, context, convert_result)
        except ToolError as error:
            match error.__cause__:
                case LayerDiffuseError() as cause:
                    raise ToolError(str(cause)) from cause
                case OSError(errno=number, strerror=why) as cause if number in SHORTAGES:
                    raise ToolError(
                        f"The server can open nothing more now: {why}. Close other programs, or call again later."
                    ) from cause
                case ValidationError() as cause if not isinstance(error, UnexpectedToolError):
                    raise ToolError(explain(cause)) from cause
                case OSError(filename=path) as cause if path is not None:
                    text = f"{self.name} could not use {printable(str(path))} ({cause.strerror or cause})."
                    raise UnexpectedToolError(f"{text} Mend that, or give another file or folder.") from cause
                case Exception() as cause if isinstance(error, UnexpectedToolError):
                    text = f"{self.name} failed unexpectedly ({type(cause).__name__}: {short(str(cause))})."
                    raise UnexpectedToolError(f"{text} The server's log says where; other calls work.") from cause
                case _:
                    raise

    def _check_names(self, given: Any, schema: Mapping[str, Any], where: str) -> None:
        """Refuse names that are none of the schema's, at any depth; those that have another place are told it."""
        match given:
            case {**named} if "properties" in schema:
                for name, value in named.items():
                    if name not in schema["properties"]:
                        missing = [known for known in schema.get("required", ()) if known not in named]
                        raise ToolError(self._unknown(str(name), schema["properties"], where, missing))
                    self._check_names(value, schema["properties"][name], f"{where}{name}.")
            case bool() if schema.get("type") in ("integer", "number"):
                raise ToolError(f"{where.removesuffix('.')}: give a number, not {str(given).lower()}.")
            case [*items] if "items" in schema:
                for number, item in enumerate(items):
                    self._check_names(item, schema["items"], f"{where}{number}.")
            case _:
                pass

    def _unknown(self, name: str, allowed: Mapping[str, Any], where: str, missing: Sequence[str]) -> str:
        top = self.accepted["properties"]
        for parent, schema in top.items():
            if name in schema.get("properties", {}):
                return f"`{where}{name}` is now `{parent}.{name}`."
        if where and name in top:
            return f"`{where}{name}` is now `{name}`, beside `{where.partition('.')[0]}`."
        for parent, hint in MOVED.get(name, {}).items():
            if parent in top:
                return f"`{where}{name}` is now {hint}."
        place = f"{where.removesuffix('.')} of {self.name}" if where else self.name
        needs = f" needs {' and '.join(missing)}, and" if missing else ""
        return f"{place}{needs} has no parameter {quoted(name)}. {near(name, allowed)}"


_OWN_PROMPT = 'options.layer_prompts.{0}`, as in options={{"layer_prompts": {{"{0}": "..."}}}}'
_SIZE = {
    "size": '`size`, as in size="1024x768"',
    "canvas": '`canvas.size`, as in canvas={"size": "1024x768"}',
}
MOVED: Mapping[str, Mapping[str, str]] = {
    "width": _SIZE,
    "height": _SIZE,
    "recipe_from": {"seed": "the tool redraw_image, with image and changes"},
    "job_id": {"job_ids": '`job_ids`, a list, as in job_ids=["job-863032aa"]'},
    **{
        f"{role}_prompt": {"options": f"`{_OWN_PROMPT.format(role)}"}
        for role in ("foreground", "background", "blended")
    },
}
"""Where a name that tools once had has gone: what to say, for tools that have the parameter named."""


def _without_nulls(value: Any, schema: Mapping[str, Any]) -> Any:
    """A value without what is null in it, as deep as its schema goes: null is as good as left out."""
    match value:
        case {**named} if "properties" in schema:
            shapes = schema["properties"]
            given = {name: item for name, item in named.items() if item is not None}
            return {name: _without_nulls(item, shapes.get(name, {})) for name, item in given.items()}
        case [*items] if "items" in schema:
            return [_without_nulls(item, schema["items"]) for item in items]
        case _:
            return value
