"""Parameters that several tools share, in the few words that a catalogue has room for.

Types and bounds are those of the request; `requests.py` describes them at length, here
agents read the short form.
"""

from typing import Annotated, Any

from pydantic import Field

from layerdiffuse_mcp.api import fields, requests
from layerdiffuse_mcp.families.registry import METHODS
from layerdiffuse_mcp.families.spec import Task


def named(what: str) -> Any:
    """Annotation of a file that is read: by path, or by the id of a picture that this server made."""
    return Field(min_length=1, max_length=4096, description=what)


def picture(what: str) -> Any:
    """The type of such a file."""
    return Annotated[str, named(what)]


def short(kind: Any, words: str) -> Any:
    """The same type with a shorter description."""
    return Annotated[kind, Field(description=words)]


Model = Annotated[fields.ModelName, Field(description="From list_models")]
Preview = Annotated[bool, Field(description="Attach a small one")]
Wait = Annotated[float, Field(ge=0, le=600, allow_inf_nan=False, description="Default 50; then a job_id")]
TRANSPARENT_METHODS = tuple(method for method in METHODS if requests.can_do(method, Task.TRANSPARENT))
JobId = Annotated[str, Field(min_length=1, max_length=100, description="From the call that began it")]

DRAWING: dict[str, Any] = {
    "prompt": short(fields.Prompt, "What to draw; (word:1.2) stresses"),
    "negative_prompt": fields.NegativePrompt,
    "image": picture("RGBA, path or image id"),
    "mask": picture("Where it is white, image changes; default: everywhere"),
    "strength": short(fields.Denoising, "0.2 keeps the shape, 1 redraws all"),
    "foreground": picture("RGBA, path or image id"),
    "background": picture("Path or image id"),
    "blended": picture("Path or image id"),
    "foreground_prompt": short(fields.Prompt, "Its own prompt"),
    "background_prompt": short(fields.Prompt, "Its own prompt"),
    "blended_prompt": short(fields.Prompt, "Its own prompt"),
    "model": Model,
    "method": Annotated[str, fields.OneOf(TRANSPARENT_METHODS, "method"), Field(description="Default attn")],
    "seed": short(fields.Seed, "-1 draws one"),
    "count": short(fields.Count, "Results"),
    "width": short(fields.Size, "Pixels; default: native"),
    "height": short(fields.Size, "As width"),
    "steps": short(fields.Steps, "Default: advised"),
    "sampler": short(fields.SamplerName, "Default: advised"),
    "schedule": short(fields.ScheduleName, "Default: advised"),
    "guidance_scale": short(fields.Guidance, "Default: advised"),
    "layer_weight": short(fields.LayerWeight, "SDXL; default 1"),
    "stop_at": short(fields.StopAt, "Share of steps it acts in"),
    "resize_mode": short(fields.ResizeMode, "Fit to width, height"),
    "save_latent": short(bool, "Save the latent too"),
    "recipe_from": picture("Picture to draw again, changed as given"),
    "preview": Preview,
    "wait_seconds": Wait,
}
"""What a drawing tool may take, by name."""
