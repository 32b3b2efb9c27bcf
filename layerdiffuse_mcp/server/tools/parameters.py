"""Parameters that several tools share and no request has: files, waiting, previews, a layer's own prompt."""

from typing import Annotated, Any

from pydantic import Field

from layerdiffuse_mcp.api.fields import MAX_PROMPT_CHARACTERS, OneOf
from layerdiffuse_mcp.api.requests import can_do
from layerdiffuse_mcp.families.registry import METHODS
from layerdiffuse_mcp.families.spec import Task

TRANSPARENT_METHODS = tuple(method for method in METHODS if can_do(method, Task.TRANSPARENT))


def file_field(description: str) -> Any:
    """Annotation of a file that is read: by path, or by the id of a picture that this server made."""
    return Field(min_length=1, max_length=4096, description=description)


def _layer_prompt(role: str) -> Any:
    description = f"What the {role} shows; it is put before prompt for this layer alone"
    return Field(max_length=MAX_PROMPT_CHARACTERS, description=description)


Preview = Annotated[bool, Field(description="Attach a small preview of the result; the files are whole without it")]
Wait = Annotated[
    float,
    Field(
        ge=0,
        le=600,
        allow_inf_nan=False,
        description="Seconds to wait for the result, 50 unless set otherwise; then a job_id for get_job is returned",
    ),
]
JobId = Annotated[str, Field(min_length=1, max_length=100, description="Id of a job, from the call that began it")]

Foreground = Annotated[str, file_field("RGBA picture of the foreground: a path or an image id")]
Background = Annotated[str, file_field("Picture of the background: a path or an image id")]
Blended = Annotated[str, file_field("Picture with both layers blended: a path or an image id")]
Image = Annotated[str, file_field("RGBA picture: a path or an image id")]
Mask = Annotated[
    str, file_field("Picture that is white where image is to change: a path or an image id; default: everywhere")
]
RecipeFrom = Annotated[
    str,
    file_field(
        "Picture that this server drew, a path or an image id: it is drawn again by its recipe, "
        "changed by the other parameters given"
    ),
]
ForegroundPrompt = Annotated[str, _layer_prompt("foreground")]
BackgroundPrompt = Annotated[str, _layer_prompt("background")]
BlendedPrompt = Annotated[str, _layer_prompt("blended picture")]
TransparentMethod = Annotated[
    str, OneOf(TRANSPARENT_METHODS, "method"), Field(description="Layer method; default: the attn one of the family")
]
