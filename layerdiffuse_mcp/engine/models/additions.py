"""Networks beside a base's own: ControlNets, IP-Adapters and their image encoders.

    components.use_additions(additions_of(plan, settings))
    controlnet = components.network(control_key("canny"))

Each belongs to a phase, whose other networks it is onloaded with, and is called by its key in errors, too.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layerdiffuse_mcp.api.plan import DrawPlan
from layerdiffuse_mcp.engine.weights.checkpoint import Part
from layerdiffuse_mcp.engine.weights.controlnet import read_controlnet
from layerdiffuse_mcp.engine.weights.ip_adapter import read_image_encoder, read_ip_adapter
from layerdiffuse_mcp.families.spec import Phase
from layerdiffuse_mcp.hub.controls import find_adapter, find_control, find_encoder
from layerdiffuse_mcp.settings import Settings

ENCODER = "the image encoder"


@dataclass(frozen=True)
class Addition:
    """Where a network lies, what recipes call it, when it is used. read: reads it, beside the UNet's configuration."""

    path: Path
    name: str
    phase: Phase
    read: Callable[[Path, Mapping[str, Any]], Part]


def control_key(name: str) -> str:
    """What a ControlNet is called among a base's networks."""
    return f"the ControlNet {name}"


def adapter_key(name: str) -> str:
    """What an IP-Adapter is called among a base's networks."""
    return f"the IP-Adapter {name}"


def additions_of(plan: DrawPlan, settings: Settings) -> dict[str, Addition]:
    """What a plan needs beside its base; raises ModelNotFound where a file is not here any more."""
    made = {
        control_key(name): Addition(find_control(name, settings).path, name, "denoising", read_controlnet)
        for name in plan.controls
    }
    if plan.reference is not None:
        adapter = find_adapter(plan.reference.model, settings)
        encoder = find_encoder(adapter, settings)
        made[adapter_key(adapter.name)] = Addition(
            adapter.path, adapter.name, "denoising", lambda path, _: read_ip_adapter(path)
        )
        made[ENCODER] = Addition(encoder, encoder.name, "text", lambda path, _: read_image_encoder(path))
    return made
