"""The SDK's server as ours: resources of a client's own, completions that know them, errors in words.

server = LayerServer(NAME, ..., lifespan=...)       # made by `app.create_server`; the lifespan sets `clients`
server.at_end.append(call)                          # hears of each job that ends
"""

from collections.abc import Callable, Iterable
from typing import Any

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel.helper_types import ReadResourceContents
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INVALID_PARAMS,
    CallToolResult,
    CompleteRequestParams,
    CompleteResult,
    GetPromptResult,
    InputRequiredResult,
    ListResourcesResult,
    PaginatedRequestParams,
    ResourceTemplate,
    SubscriptionsListenRequestParams,
    SubscriptionsListenResult,
    TextContent,
)

from layerdiffuse_mcp.api.fields import near
from layerdiffuse_mcp.jobs.job import Job
from layerdiffuse_mcp.server import stdio
from layerdiffuse_mcp.server.resources import check_view, completed, page, tell_end, with_its_type
from layerdiffuse_mcp.server.sendable import readable
from layerdiffuse_mcp.server.services import IMAGES, Clients, Services
from layerdiffuse_mcp.wording import quoted

GONE = {
    "generate_blended": 'It is want=["blended"] of generate_background_from_foreground and '
    "generate_foreground_from_background now."
}
"""Tools that there once were, and what to call instead."""


class LayerServer(MCPServer[Services]):
    """The SDK's server, with resources that come from the queue, completions that know it, and errors in words."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        low = self._lowlevel_server
        low.add_request_handler("completion/complete", CompleteRequestParams, self._complete)
        low.add_request_handler("subscriptions/listen", SubscriptionsListenRequestParams, self._listen)
        self.clients = Clients()
        """While it is served: the services of each client."""
        self.at_end: list[Callable[[Job], object]] = []
        """Called with each job that ends."""

    def job_ended(self, job: Job, tasks: TaskGroup, known: Services) -> None:
        """Tell its client, and whoever else wants to hear."""
        tasks.start_soon(tell_end, known.events, job)
        for call in self.at_end:
            call(job)

    async def serve_stdio(self) -> int:
        """Serve one client on standard input and output until it goes; returns the exit status."""
        return await stdio.serve(self._lowlevel_server)

    async def get_prompt(
        self, name: str, arguments: dict[str, Any] | None = None, context: Context[Services, Any] | None = None
    ) -> GetPromptResult | InputRequiredResult:
        """A prompt by its name; an MCPError says which arguments it takes if those given are not right."""
        prompts = {prompt.name: prompt for prompt in await self.list_prompts()}
        if name not in prompts:
            raise MCPError(INVALID_PARAMS, f"There is no prompt {quoted(name)}. {near(name, prompts)}")
        takes = prompts[name].arguments or []
        given = arguments or {}
        if unknown := [argument for argument in given if argument not in {known.name for known in takes}]:
            names = [known.name for known in takes]
            text = f"The prompt {name} has no argument {quoted(unknown[0])}. {near(unknown[0], names)}"
            raise MCPError(INVALID_PARAMS, text)
        if missing := [known for known in takes if known.required and not given.get(known.name, "").strip()]:
            wanted = "; ".join(f"{known.name} ({known.description})" for known in missing)
            raise MCPError(INVALID_PARAMS, f"The prompt {name} needs {wanted}.")
        return await super().get_prompt(name, arguments, context)

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Context[Services, Any] | None = None
    ) -> CallToolResult | InputRequiredResult:
        """Call a tool by its name; raises ToolError as the SDK's own method does."""
        names = [tool.name for tool in await self.list_tools()]
        if name not in names:
            raise ToolError(f"There is no tool {quoted(name)}. {GONE.get(name) or near(name, names)}")
        result = await super().call_tool(name, arguments, context)
        for block in result.content if isinstance(result, CallToolResult) else ():
            if isinstance(block, TextContent):
                block.text = readable(block.text)
        return result

    async def _handle_list_resources(
        self, ctx: ServerRequestContext[Services], params: PaginatedRequestParams | None
    ) -> ListResourcesResult:
        try:
            return page(ctx.lifespan_context, params.cursor if params else None)
        except ValueError:
            raise MCPError(INVALID_PARAMS, "The cursor is not one that this server gave. Begin without one.") from None

    async def list_resource_templates(self) -> list[ResourceTemplate]:
        """The templates; that of pictures without a media type, for each picture has its own."""
        templates = await super().list_resource_templates()
        return [
            template.model_copy(update={"mime_type": None}) if template.uri_template.startswith(IMAGES) else template
            for template in templates
        ]

    async def read_resource(
        self, uri: Any, context: Context[Services, Any] | None = None
    ) -> Iterable[ReadResourceContents] | InputRequiredResult:
        check_view(str(uri))
        read = await super().read_resource(uri, context)
        if context is None or isinstance(read, InputRequiredResult):
            return read
        known = context.request_context.lifespan_context
        return [await anyio.to_thread.run_sync(with_its_type, known, str(uri), part) for part in read]

    async def _complete(self, ctx: ServerRequestContext[Services], params: CompleteRequestParams) -> CompleteResult:
        return CompleteResult(completion=await completed(ctx.lifespan_context, params.ref, params.argument))

    async def _listen(
        self, ctx: ServerRequestContext[Services], params: SubscriptionsListenRequestParams
    ) -> SubscriptionsListenResult:
        return await ctx.lifespan_context.listening(ctx, params)
