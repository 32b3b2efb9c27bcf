"""The MCP face: tools, resources and prompts over the queue; it imports no torch.

`app` builds and serves it, `tools` holds one module a subject, `results` shapes what an
agent gets back.
"""
