"""What is asked of ControlNets, before anything waits: that they are here, fit the base, and have something to follow.

request = with_controls(request, entry, family, settings)
"""

from layerdiffuse_mcp.api.requests import GenerateRequest
from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.families.entries import ModelEntry
from layerdiffuse_mcp.families.registry import FAMILIES
from layerdiffuse_mcp.families.spec import FamilySpec
from layerdiffuse_mcp.hub.catalog import POCKET
from layerdiffuse_mcp.hub.controls import find_control
from layerdiffuse_mcp.images.files import name_of
from layerdiffuse_mcp.settings import Settings


def with_controls(
    request: GenerateRequest, entry: ModelEntry, family: FamilySpec, settings: Settings
) -> GenerateRequest:
    """The request with its ControlNets as the catalogue names them.

    Raises:
        ModelNotFound: there is no ControlNet of a name.
        InvalidRequest: one does not fit the base, or would see an empty map.
        ImageError: a picture cannot be read.
    """
    from layerdiffuse_mcp.images.read import is_opaque

    if not request.control or "control" not in family.accepts:  # refused with the other options that do not act
        return request
    if entry.name == POCKET:
        raise InvalidRequest(
            f"control does not act on {entry.name}: no ControlNet has its size. Name a real base, or leave control out."
        )
    named = [find_control(one.model, settings) for one in request.control]
    for control, one in zip(named, request.control, strict=True):
        if control.family != family.id:
            fits = f"for {FAMILIES[control.family].title} models" if control.family else "of a kind that is not known"
            raise InvalidRequest(
                f"The ControlNet {control.name} is {fits}, and {entry.name} is an {family.title} model. Name another, "
                "as list_models lists them."
            )
        if one.preprocess == "alpha_edge" and is_opaque(one.image, settings.max_pixels):
            raise InvalidRequest(
                f"{name_of(one.image)} has no transparency, so it has no outline for alpha_edge to find: set "
                "preprocess to canny, or give a transparent picture."
            )
    renamed = zip(request.control, named, strict=True)
    return request.model_copy(
        update={"control": tuple(one.model_copy(update={"model": entry.name}) for one, entry in renamed)}
    )
