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
    """The request with that LoRA before all others in its prompt, and no further wish; raises as `speed_lora` does."""
    lora = speed_lora(request.speed, entry, settings)
    if lora is None:
        return request
    named = {tag.name for tag in extract_loras(request.prompt)[1]}
    prompt = request.prompt if lora.name in named else f"<lora:{lora.name}:1>{request.prompt}"
    return request.model_copy(update={"prompt": prompt, "speed": None})
