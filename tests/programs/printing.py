"""Serves on stdio, and prints as libraries do: at their import, while it answers, and when the client has gone."""

import os
from typing import Any

from layerdiffuse_mcp.server import app
from layerdiffuse_mcp.server.layer_server import LayerServer
from layerdiffuse_mcp.settings import Settings


def say(when: str) -> None:
    print(f"printed {when}")  # noqa: T201 - the point; Python keeps it in a buffer
    os.write(1, f"written {when}\n".encode())


class Printing(LayerServer):
    async def list_tools(self) -> Any:
        say("meanwhile")
        return await super().list_tools()


print("printed before")  # noqa: T201
app.LayerServer = Printing
app.serve_stdio(Settings(warm_up=False))
say("after")
