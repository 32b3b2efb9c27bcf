"""Writes the tables of docs/models.md from the families' cards, each between its two comments.

python docs/models.py             # writes them
python docs/models.py --check     # exit status 1 when they are not what the cards say today
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from layerdiffuse_mcp.engine.startup import lean_imports

with lean_imports():
    from layerdiffuse_mcp.engine.device.placement import Placement
    from layerdiffuse_mcp.engine.models.offload import estimated_sizes
from layerdiffuse_mcp.families.entries import GB, HubFile
from layerdiffuse_mcp.families.matting import MATTING
from layerdiffuse_mcp.families.memory import LEVELS
from layerdiffuse_mcp.families.registry import BASES, EMBEDDED, FAMILIES, LORAS
from layerdiffuse_mcp.wording import in_words

PAGE = Path(__file__).parent / "models.md"
PLACES = {
    "GPU, 16 bits": Placement(torch.device("mps"), torch.float16),
    "CPU, float32": Placement(torch.device("cpu"), torch.float32),
}
"""Where networks run; what is counted depends on the number formats alone."""


def bases() -> str:
    """The bases that are known by name."""
    rows = [
        (
            f"`{entry.name}`",
            FAMILIES[entry.family].title if entry.family else "",
            f"{entry.native_size} px",
            in_words(entry.bytes) if entry.bytes else "inside the package",
            entry.licence or "",
            f"`{entry.published[0].repo}`" if entry.published else "",
            entry.description,
        )
        for entry in (*EMBEDDED, *BASES)
    ]
    return table(("base", "family", "draws best at", "file", "licence", "published in", ""), rows)


def methods() -> str:
    """The layer files and what they do."""
    rows = [
        (
            f"`{method.id}`",
            family.title,
            " and ".join(method.inputs) or "prompt",
            ", ".join(f"{role} (RGBA)" if role == method.transparent else role for role in method.outputs),
            size(family.files.get(method.file)),
        )
        for family in FAMILIES.values()
        for method in family.methods.values()
        if method.file
    ]
    return table(("layer file", "family", "from", "to", "file"), rows)


def memory() -> str:
    """What a base takes, by what is on the device at once."""
    rows = [
        (
            family.title,
            f"{family.native_size} px",
            place,
            *(
                gigabytes(estimated_sizes(family, placement).drawing(family.frames * pixels, pixels).at(level))
                for level in LEVELS
            ),
        )
        for family in FAMILIES.values()
        for pixels in [family.native_size**2]
        for place, placement in PLACES.items()
    ]
    return table(("family", "one picture of", "where", *(f"`{level}`" for level in LEVELS)), rows)


def matting() -> str:
    """The matting networks."""
    rows = [
        (
            f"`{network.name}`",
            size(network.remote),
            gigabytes(network.memory),
            network.remote.licence or "",
            f"`{network.remote.repo}`",
            network.description,
        )
        for network in MATTING.values()
    ]
    return table(("network", "file", "memory, as others measured", "licence", "published in", ""), rows)


def few_steps() -> str:
    """The LoRAs that make a base draw in few steps."""
    rows = [
        (
            f"`{lora.name}`",
            FAMILIES[lora.family].title if lora.family else "",
            f"`{lora.speed}`",
            "{steps} steps, {sampler}, {schedule}, guidance {guidance_scale:g}".format(**lora.advice),
            size(lora.remote),
            lora.licence or "",
            f"`{lora.remote.repo}`" if lora.remote else "",
        )
        for lora in LORAS
        if lora.speed
    ]
    return table(("LoRA", "family", "`options.speed`", "draws with", "file", "licence", "published in"), rows)


TABLES = {"bases": bases, "few_steps": few_steps, "methods": methods, "memory": memory, "matting": matting}


def size(file: HubFile | None) -> str:
    """Of a published file, in words."""
    return in_words(file.bytes) if file and file.bytes else ""


def gigabytes(count: int) -> str:
    """Bytes as gigabytes with one decimal."""
    return f"{count / GB:.1f} GB"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows as Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def page(text: str) -> str:
    """The page with its tables as they should be."""
    for name, made in TABLES.items():
        before, found, rest = text.partition(f"<!-- {name} -->\n")
        _, ended, after = rest.partition(f"<!-- end of {name} -->")
        if not (found and ended):
            raise ValueError(f"{PAGE.name} has no place for the table {name}")
        text = f"{before}{found}{made()}{ended}{after}"
    return text


def main(arguments: list[str]) -> int:
    """Write or check the tables."""
    before = PAGE.read_text()
    if "--check" in arguments:
        return 0 if before == page(before) else 1
    PAGE.write_text(page(before))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
