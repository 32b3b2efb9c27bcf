"""Plans of requests, without a catalogue and without files."""

from typing import Any

from layerdiffuse_mcp.api.plan import DrawPlan, GivenPicture, Planned, make_plan
from layerdiffuse_mcp.api.requests import GenerateRequest
from layerdiffuse_mcp.families.registry import FAMILIES


def plan_of(request: GenerateRequest, family: str = "sd15", native_size: int = 512, **known: Any) -> DrawPlan:
    """The plan of a request; what its pictures hold is made up."""
    pictures = {
        name: GivenPicture(name=path.name, sha256="ab" * 32, bytes=7) for name, path in request.pictures.items()
    }
    known = {"model": request.model or "a-base", "pictures": pictures} | known
    return make_plan(request, FAMILIES[family], native_size=native_size, **known)


def drawing(prompt: str, **fields: Any) -> DrawPlan:
    """A plan of this prompt."""
    return plan_of(GenerateRequest(prompt=prompt, **fields))


def planned(prompt: str, **fields: Any) -> Planned:
    """The same, as the queue takes it."""
    return Planned((drawing(prompt, **fields),))
