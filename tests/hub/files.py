"""Files for tests of the hub: safetensors by their bytes alone, bases that a header makes out."""

import json
import random
from pathlib import Path

SD15_KEYS = {
    "model.diffusion_model.input_blocks.0.0.weight": (8, 4, 3, 3),
    "model.diffusion_model.input_blocks.1.1.norm.weight": (8,),
    "model.diffusion_model.input_blocks.1.1.proj_in.weight": (8, 8, 1, 1),
}
SDXL_KEYS = {
    "model.diffusion_model.input_blocks.0.0.weight": (8, 4, 3, 3),
    "model.diffusion_model.label_emb.0.0.weight": (8, 8),
    "model.diffusion_model.input_blocks.4.1.norm.weight": (8,),
    "model.diffusion_model.middle_block.1.norm.weight": (8,),
}
LORA_KEYS = {"lora_unet_mid.lora_up.weight": (8, 4), "lora_unet_mid.lora_down.weight": (4, 8)}
FLUX_KEYS = {"double_blocks.0.img.weight": (8, 8), "single_blocks.0.linear1.weight": (8, 8)}


def tensors(keys: dict[str, tuple[int, ...]], metadata: dict[str, str] | None = None) -> bytes:
    """A safetensors file with zeros under these names."""
    rows: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, shape in keys.items():
        size = 1
        for length in shape:
            size *= length
        rows[name] = {"dtype": "U8", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    header = json.dumps(rows).encode()
    return len(header).to_bytes(8, "little") + header + bytes(end)


def weights(size: int, seed: int = 0) -> bytes:
    """A safetensors file of one random tensor of `size` bytes."""
    empty = tensors({"weight": (size,)})
    return empty[:-size] + random.Random(seed).randbytes(size)


def write(path: Path, content: bytes) -> Path:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path
