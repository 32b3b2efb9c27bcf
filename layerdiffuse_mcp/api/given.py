"""Given pictures as plans name them: by their content; and those that a drawing follows or refers to.

picture = GivenPicture(name="house.png", sha256="...")
control = planned_controls(request.control, {"control_1": picture})
"""

from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from layerdiffuse_mcp.api.control import (
    REFERENCE,
    REFERENCE_MASK,
    Control,
    ControlSettings,
    Reference,
    ReferenceSettings,
    control_names,
)


class GivenPicture(BaseModel):
    """A picture or a latent that is given: the name it had, and its content's SHA-256 and size.

    Read from a recipe of the first format, `name` is a path and the size is not known.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: Annotated[str, Field(max_length=4096)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    bytes: int | None = None


class PlannedControl(ControlSettings):
    """A ControlNet by its name in the catalogue, and the picture that is followed."""

    image: GivenPicture


class PlannedReference(ReferenceSettings):
    """An IP-Adapter by its name in the catalogue, the picture that is referred to, and where."""

    image: GivenPicture
    mask: GivenPicture | None = None


def planned_controls(controls: Sequence[Control], given: Mapping[str, GivenPicture]) -> tuple[PlannedControl, ...]:
    """Controls with what their pictures hold."""
    named = zip(control_names(len(controls)), controls, strict=True)
    return tuple(PlannedControl.model_validate({**dict(one), "image": given[name]}) for name, one in named)


def planned_reference(reference: Reference | None, given: Mapping[str, GivenPicture]) -> PlannedReference | None:
    """A reference with what its pictures hold."""
    if reference is None:
        return None
    pictures = {"image": given[REFERENCE], "mask": given.get(REFERENCE_MASK)}
    return PlannedReference.model_validate({**dict(reference), **pictures})


def pictures_beside(
    controls: Sequence[PlannedControl], reference: PlannedReference | None
) -> dict[str, GivenPicture | None]:
    """Their pictures by name."""
    named = zip(control_names(len(controls)), (one.image for one in controls), strict=True)
    pictures: dict[str, GivenPicture | None] = dict(named)
    if reference is not None:
        pictures |= {REFERENCE: reference.image, REFERENCE_MASK: reference.mask}
    return pictures
