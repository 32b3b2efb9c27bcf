"""What is asked of ControlNets and IP-Adapters, before anything waits: that they are here and fit the base.

request = with_controls(request, entry, family, settings)
"""

from collections.abc import Sequence
from typing import TypeVar

from layerdiffuse_mcp.api.choices import LINE_KINDS
from layerdiffuse_mcp.api.control import Control, Reference
from layerdiffuse_mcp.api.requests import GenerateRequest
from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.families.entries import ControlEntry, ModelEntry
from layerdiffuse_mcp.families.spec import FamilySpec
from layerdiffuse_mcp.hub.catalog import POCKET
from layerdiffuse_mcp.hub.controls import find_adapter, find_control, find_encoder
from layerdiffuse_mcp.images.files import name_of
from layerdiffuse_mcp.settings import Settings


def with_controls(
    request: GenerateRequest, entry: ModelEntry, family: FamilySpec, settings: Settings
) -> GenerateRequest:
    """The request with its ControlNets and IP-Adapter as the catalogue names them.

    Raises:
        ModelNotFound: there is none of a name that fits the base, or no image encoder.
        InvalidRequest: one would see an empty map.
        ImageError: a picture cannot be read.
    """
    from layerdiffuse_mcp.images.read import is_opaque

    asked = {"control": request.control, "reference": request.reference}
    if not family.accepts.issuperset(acts := [name for name, given in asked.items() if given]):
        return request  # refused with the other options that do not act
    if acts and entry.name == POCKET:
        raise InvalidRequest(
            f"{' and '.join(acts)} would not act on {entry.name}: no network for that has its size. Name a real base, "
            "or leave it out."
        )
    named = [find_control(one.model, settings, family) for one in request.control]
    for one in request.control:
        if one.preprocess == "alpha_edge" and is_opaque(one.image, settings.max_pixels):
            raise InvalidRequest(
                f"{name_of(one.image)} has no transparency, so it has no outline for alpha_edge to find: set "
                "preprocess to canny, or give a transparent picture."
            )
    notes = (*request.notes, *_no_maps(request, named, settings))
    renamed = [_renamed(one, found) for one, found in zip(request.control, named, strict=True)]
    reference = request.reference
    if reference is not None:
        adapter = find_adapter(reference.model, settings, family)
        find_encoder(adapter, settings)
        reference = _renamed(reference, adapter)
    return request.model_copy(update={"control": tuple(renamed), "reference": reference, "notes": notes})


def _no_maps(request: GenerateRequest, named: Sequence[ControlEntry], settings: Settings) -> tuple[str, ...]:
    """What to say of pictures that are given as maps of lines and are plainly none."""
    from layerdiffuse_mcp.images.control_maps import looks_like_lines
    from layerdiffuse_mcp.images.read import read_picture

    doubts: list[str] = []
    for number, (one, net) in enumerate(zip(request.control, named, strict=True)):
        if one.preprocess != "none" or net.kind not in LINE_KINDS:
            continue
        if not looks_like_lines(read_picture(one.image, settings.max_pixels).rgba):
            doubts.append(
                f"{name_of(one.image)} is no map of light lines on black, which {net.name} follows, and was shown to "
                f"it as it is: set preprocess of control.{number} to canny, which makes one of it."
            )
    return tuple(doubts)


S = TypeVar("S", Control, Reference)


def _renamed(settings: S, found: ControlEntry) -> S:
    return settings.model_copy(update={"model": found.name})
