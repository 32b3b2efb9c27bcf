"""Names of the first house, until their users look at the cards."""

from layerdiffuse_mcp.families.registry import FAMILIES, METHODS, ROUTES, families_for, task_inputs
from layerdiffuse_mcp.families.spec import ROLES, Advice, Role, Task
from layerdiffuse_mcp.families.spec import LayerMethod as Method

Family = str
TRANSPARENCY_FILES = {
    card.id: {"encoder": card.codec.encoder, "decoder": card.codec.decoder} for card in FAMILIES.values() if card.codec
}

__all__ = [
    "FAMILIES",
    "METHODS",
    "ROLES",
    "ROUTES",
    "TRANSPARENCY_FILES",
    "Advice",
    "Family",
    "Method",
    "Role",
    "Task",
    "families_for",
    "task_inputs",
]
