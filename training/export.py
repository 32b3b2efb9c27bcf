"""Stage 8: the trained networks as the files that ship, fp16: a single-file base in LDM names and the layer files in
the official ones.

    python -m training.export --work build/training --out layerdiffuse_mcp/pocket

With --draft, networks that have not been trained yet are written as they were initialised, so that everything can be
wired up.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import save_file

from layerdiffuse_mcp.engine.weights.ldm_export import save_single_file
from layerdiffuse_mcp.families.sd15 import SD15
from training import autoencoder, data, layer, mixing, transparency, unet
from training.backgrounds import scenes
from training.materials import COLOURS
from training.text import CONFIG
from training.vocabulary import LOOKS, WIDE, vocabulary

LIMIT = 60_000_000
LAYERS = ("layer_sd15_transparent_attn", "layer_sd15_joint", "layer_sd15_fg2bg", "layer_sd15_bg2fg")
GUIDANCE = 4.0  # at 7 colours burn and grey is left around the subject; at 3 fewer subjects are recognised


def _half(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.cpu().half().contiguous() for name, value in state.items()}


@torch.no_grad()
def latent_rgb(vae: AutoencoderKL, scaling: float, pictures: np.ndarray) -> list[list[float]]:
    """The linear map from scaled latents to colours in -1..1 that fits pictures (N, 128, 128, 4), uint8, on grey best:
    a row of red, green and blue for each latent channel, and one for none. For the previews while it draws.
    """
    image = mixing.flattened(mixing.to_tensor(pictures)).to(vae.device) * 2 - 1
    latents = (vae.encode(image).latent_dist.mean * scaling).movedim(1, -1).flatten(0, 2)
    colours = F.avg_pool2d(image, 8).movedim(1, -1).flatten(0, 2)
    solution = torch.linalg.lstsq(torch.cat([latents, torch.ones_like(latents[:, :1])], 1), colours).solution
    return [[round(value, 4) for value in row] for row in solution.tolist()]


def export(work: Path, out: Path, draft: bool) -> None:
    """Writes the weight files and concepts.json."""
    out.mkdir(parents=True, exist_ok=True)

    def trained(stage: str) -> bool:
        found = (work / f"{stage}.pt").exists()
        if not found and not draft:
            raise SystemExit(f"{stage}.pt is not there yet: train it first, or export a --draft")
        return found

    vae, scaling = autoencoder.load(work) if trained("autoencoder") else (autoencoder.network(), 1.0)
    base, text = unet.load(work) if trained("unet") else unet.networks()
    encoder, decoder = (
        transparency.load_pair(work)
        if trained("decoder")
        else (transparency.offset_encoder(), transparency.transparent_decoder())
    )
    layers = {
        method: layer.load(work, method)
        if trained(method)
        else layer.network(base, method, layer.RANK, layer.CONTROL_WIDTH).state_dict()
        for method in LAYERS
    }
    settings = {
        "name": "pocket",
        "native_size": data.SIZE,
        "prediction": "epsilon",
        "advice": {"guidance_scale": GUIDANCE},
        "unet": {
            "attention_head_dim": list(unet.UNET["attention_head_dim"]),
            "norm_num_groups": unet.UNET["norm_num_groups"],
        },
        "vae": {"norm_num_groups": autoencoder.CONFIG["norm_num_groups"], "scaling_factor": scaling},
        "text_encoder": {"num_attention_heads": CONFIG.num_attention_heads},
    }
    if (work / "pictures.json").exists():
        pictures, rows = data.load(work)
        settings["latent_rgb"] = latent_rgb(vae, scaling, pictures[[row["held_out"] for row in rows]])
    save_single_file(
        out / "pocket.safetensors", SD15, base.cpu().half(), vae.cpu().half(), [text.cpu().half()], settings
    )
    save_file(_half(encoder.state_dict()), out / "layer_sd15_vae_transparent_encoder.safetensors")
    save_file(_half(decoder.state_dict()), out / "layer_sd15_vae_transparent_decoder.safetensors")
    for method, tensors in layers.items():
        save_file(_half(tensors), out / f"{method}.safetensors")
    looks = LOOKS if WIDE else LOOKS[:1]
    known = {
        "styles": sorted({look.style for look in looks}),
        "materials": sorted({look.material for look in looks if look.material} - COLOURS.keys()),
        "colours": [look.material for look in looks if look.material in COLOURS],
        "scenes": scenes(),
        "subjects": {subject.words[0]: subject.words for subject in vocabulary(work)},
    }
    (out / "concepts.json").write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n")
    total = 0
    for file in sorted(out.glob("*.safetensors")):
        total += file.stat().st_size
        print(f"{file.name:50s} {file.stat().st_size / 1e6:6.2f} MB")
    print(f"{'together':50s} {total / 1e6:6.2f} MB")
    if total > LIMIT:
        raise SystemExit(f"more than {LIMIT / 1e6:.0f} MB together")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/training"))
    parser.add_argument("--out", type=Path, default=Path("layerdiffuse_mcp/pocket"))
    parser.add_argument("--draft", action="store_true")
    arguments = parser.parse_args()
    export(arguments.work, arguments.out, arguments.draft)
