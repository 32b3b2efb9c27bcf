"""The sanity checks: parameter texts whose pictures the authors of LayerDiffuse publish, to be drawn and compared.

    for text in published():
        info = infotext.parse(text)

They are in `sanity_checks.txt`, word for word as in the README of `lllyasviel/sd-forge-layerdiffuse`: six for SDXL, one
for SD 1.5, and of its examples the one of layers with prompts of their own. Its further examples start from pictures
that are not published as files.
"""

import re
from importlib import resources

PUBLISHED_AT = "https://github.com/lllyasviel/sd-forge-layerdiffuse#sanity-check"
"""Where the pictures are."""


def published() -> tuple[str, ...]:
    """The texts, in the order of publication."""
    return texts_in((resources.files("layerdiffuse_mcp.recipes") / "sanity_checks.txt").read_text(encoding="utf-8"))


def texts_in(text: str) -> tuple[str, ...]:
    """Parameter texts that stand one after another, with an empty line between two."""
    return tuple(part.strip() for part in re.split(r"\n[ \t]*\n", text.replace("\r\n", "\n")) if part.strip())
