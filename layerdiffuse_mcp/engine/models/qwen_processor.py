"""What Qwen3-VL reads words and pictures by: transformers' own processor, without the part for videos.

    processor = read_processor(folder / "processor")
    processor(text=[...], images=[...], padding=True, padding_side="left", return_tensors="pt")

That part, and the usual one for pictures, need torchvision; transformers has one for pictures that needs Pillow alone.
It imports transformers, so it is imported where a pipeline is made.
"""

from pathlib import Path
from typing import Any

from transformers import Qwen2Tokenizer, Qwen3VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

CHAT = "{% for said in messages %}<|im_start|>{{ said.role }}\n{{ said.content[0].text }}<|im_end|>\n{% endfor %}"
"""How a message of text alone is put, for which alone the pipeline asks: a template is code, so none is fetched."""


class StillProcessor(Qwen3VLProcessor):
    """Words and still pictures."""

    def __init__(self, image_processor: Any, tokenizer: Any) -> None:
        super().__init__(image_processor, tokenizer, chat_template=CHAT)


def read_processor(folder: Path) -> StillProcessor:
    """The processor of a base's folder."""
    pictures = Qwen2VLImageProcessorPil.from_pretrained(folder)
    return StillProcessor(pictures, Qwen2Tokenizer.from_pretrained(folder))
