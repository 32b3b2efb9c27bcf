"""Few steps: which LoRA a wish for speed means with a base, by what is prepared.

lora = speed_lora("draft", entry, settings)         # None for "fine": the base as it is
request = with_speed(request, entry, settings)      # the same wish, said in the prompt, as recipes hold it
"""

from layerdiffuse_mcp.api.requests import GenerateRequest
from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.families.entries import LoraEntry, ModelEntry
from layerdiffuse_mcp.families.registry import EMBEDDED
from layerdiffuse_mcp.hub import catalog
from layerdiffuse_mcp.settings import Settings
from layerdiffuse_mcp.text.emphasis import extract_loras

FINE = "fine"


def speed_lora(speed: str | None, entry: ModelEntry, settings: Settings) -> LoraEntry | None:
    """The first of the base's family that fulfils the wish and is here, else the first to fetch.

    Raises:
        InvalidRequest: none fits the base.
    """
    if speed in (None, FINE):
        return None
    rows = [lora for lora in catalog.loras(settings) if lora.speed == speed and lora.family == entry.family]
    if not rows or entry.name in {base.name for base in EMBEDDED}:
        raise InvalidRequest(
            f"speed {speed!r} would change nothing: no few-step LoRA is known that fits the model {entry.name}. Leave "
            "it out, or lower options.steps."
        )
    return next((lora for lora in rows if lora.path), rows[0])


def with_speed(request: GenerateRequest, entry: ModelEntry, settings: Settings) -> GenerateRequest:
    """The request with that LoRA before all others in its prompt, and no further wish.

    Stages that a recipe brought are drawn as the LoRA advises, but for what the request sets.

    Raises:
        InvalidRequest: as `speed_lora`; or the prompt names another few-step LoRA.
    """
    if request.speed is None:
        return request
    lora = speed_lora(request.speed, entry, settings)
    named = {tag.name for tag in extract_loras(request.prompt)[1]}
    fast = [row.name for row in catalog.loras(settings) if row.speed and row.name in named]
    if others := [name for name in fast if lora is None or name != lora.name]:
        raise InvalidRequest(
            f"The prompt names the few-step LoRA {others[0]}, and speed {request.speed!r} means "
            f"{'none' if lora is None else lora.name}. Leave the speed or the LoRA out."
        )
    if lora is None:
        return request
    prompt = request.prompt if lora.name in named else f"<lora:{lora.name}:1>{request.prompt}"
    advised = {name: value for name, value in lora.advice.items() if getattr(request, name) is None}
    stages = request.stages and tuple(stage.model_copy(update=advised) for stage in request.stages)
    return request.model_copy(update={"prompt": prompt, "speed": None, "stages": stages})
