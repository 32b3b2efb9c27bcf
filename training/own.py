"""A layer file for your own SD 1.5 base, from your own pictures: any of the four kinds, in the released format.

    python -m training.own --method layer_sd15_transparent_attn --base my_base.safetensors \\
        --encoder layer_sd15_vae_transparent_encoder.safetensors --cutouts cutouts/ --minutes 600 \\
        --out layer_sd15_transparent_attn.safetensors

`--cutouts` and `--backgrounds` are folders of pictures (PNG, WebP, JPEG ...). What is to be seen on one stands in a
text file of the same name, or else is the name itself: "red_apple_2.png" is "red apple". Cut-outs have real alpha; each
time one is drawn it is scaled, placed and mirrored anew, and for the kinds of several pictures laid on a random
background.
Without `--start` the file begins as one that changes nothing; with it, another file of the kind is trained on.

What is learnt is the base's noise prediction (epsilon) on (mean + deviation * offset) * scaling factor for transparent
pictures and on ordinary latents for the others, through the engine's own modules, so the result is what the engine
runs. Checkpoints lie below `--work`; the same command goes on where it was stopped. Runs on a GPU where there is one.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import save_file

from layerdiffuse_mcp.engine.checkpoints import read_checkpoint
from layerdiffuse_mcp.engine.prompts import encode_sd15
from layerdiffuse_mcp.engine.sharing_model import SharingModel
from layerdiffuse_mcp.engine.transparency import transparent_latent
from layerdiffuse_mcp.engine.transparency_networks import OffsetEncoder, load_offset_encoder
from layerdiffuse_mcp.images.alpha import Bytes, composite, on_grey, to_float
from layerdiffuse_mcp.images.read import read_picture
from layerdiffuse_mcp.methods import METHODS, Method
from training.common import Average, Run, device
from training.layer import OWN_PROMPTS, Batch, learn, network
from training.unet import EMPTY_SHARE

SUFFIXES = {".png", ".webp", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}
SMALLEST = 0.6  # a cut-out's longer side, of the picture's
LEAST_SIZE = 64  # pixels; the offset encoder and the control encoder want multiples of it


@dataclass(frozen=True)
class Captioned:
    """A picture file, and what is to be seen on it."""

    path: Path
    text: str

    def rgba(self) -> Bytes:
        """(H, W, 4), straight alpha."""
        return read_picture(self.path).rgba


def captioned(folder: Path) -> list[Captioned]:
    """All pictures below `folder`, in order. Raises SystemExit if there are none."""
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
    if not files:
        raise SystemExit(f"{folder} holds no pictures; put PNG, WebP, JPEG, BMP or TIFF files there")
    found = []
    for file in files:
        said = file.with_suffix(".txt")
        text = said.read_text(encoding="utf-8").strip() if said.exists() else re.sub(r"[\W_\d]+", " ", file.stem)
        found.append(Captioned(file, text.strip()))
    return found


def placed(rgba: Bytes, size: int, rng: np.random.Generator) -> Bytes:
    """A cut-out somewhere on a clear square of `size`: scaled, mirrored half of the time, whole."""
    height, width = rgba.shape[:2]
    factor = size * rng.uniform(SMALLEST, 1) / max(height, width)
    across, down = max(1, round(width * factor)), max(1, round(height * factor))
    # scaled with premultiplied colour, so that what is clear does not bleed in
    small = np.asarray(Image.fromarray(rgba).convert("RGBa").resize((across, down), Image.LANCZOS).convert("RGBA"))
    if rng.random() < 0.5:
        small = small[:, ::-1]
    left, top = int(rng.integers(size - across + 1)), int(rng.integers(size - down + 1))
    square = np.zeros((size, size, 4), np.uint8)
    square[top : top + down, left : left + across] = small
    return square


def covering(rgba: Bytes, size: int, rng: np.random.Generator) -> Bytes:
    """A random square of a background, as large as fits into it, scaled to `size`; opaque (size, size, 4)."""
    height, width = rgba.shape[:2]
    side = min(height, width)
    left, top = int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1))
    square = Image.fromarray(rgba[top : top + side, left : left + side]).convert("RGB")
    return np.asarray(square.resize((size, size), Image.LANCZOS).convert("RGBA"))


@dataclass(frozen=True)
class Scenes:
    """Draws batches of `count` scenes for a method."""

    method: Method
    vae: AutoencoderKL
    encoder: OffsetEncoder
    cutouts: list[Captioned]
    backgrounds: list[Captioned]
    size: int
    count: int

    def __call__(self, rng: np.random.Generator) -> Batch:
        latents, texts, given = [], [], []
        for _ in range(self.count):
            foreground = self.cutouts[rng.integers(len(self.cutouts))]
            pictures = {"foreground": placed(foreground.rgba(), self.size, rng)}
            said = {"foreground": foreground.text, "blended": ""}
            whole = foreground.text
            if self.backgrounds:
                background = self.backgrounds[rng.integers(len(self.backgrounds))]
                pictures["background"] = covering(background.rgba(), self.size, rng)
                pictures["blended"] = composite(pictures["foreground"], to_float(pictures["background"])[..., :3])
                said["background"] = background.text
                whole = f"{foreground.text}, {background.text}"
            latents += [self.latent(role, pictures[role]) for role in self.method.outputs]
            texts += self.texts(said, whole, rng)
            given += [torch.from_numpy(on_grey(pictures[role])).permute(2, 0, 1) for role in self.method.inputs]
        return Batch(torch.cat(latents).cpu(), texts, torch.stack(given) if given else None)

    @torch.no_grad()
    def latent(self, role: str, rgba: Bytes) -> torch.Tensor:
        """(1, 4, size / 8, size / 8), scaled."""
        if role == self.method.transparent:
            return transparent_latent(self.vae, self.encoder, rgba)
        image = torch.from_numpy(to_float(rgba)[..., :3]).permute(2, 0, 1)[None].to(self.vae.device)
        return self.vae.encode(image * 2 - 1).latent_dist.mean * self.vae.config.scaling_factor

    def texts(self, said: dict[str, str], whole: str, rng: np.random.Generator) -> list[str]:
        """A text for each frame: none, the whole scene's for all, or each frame's own before it."""
        chance = rng.random()
        if chance < EMPTY_SHARE:
            return [""] * self.method.frames
        if self.method.frames == 1 or chance < 1 - OWN_PROMPTS:
            return [whole] * self.method.frames
        return [", ".join(filter(None, (said[role], whole))) for role in self.method.outputs]


def train(arguments: argparse.Namespace) -> None:
    """Writes `arguments.out`."""
    method = METHODS[arguments.method]
    checkpoint = read_checkpoint(arguments.base)
    if checkpoint.family != "sd15" or checkpoint.prediction != "epsilon":
        raise SystemExit(f"{arguments.base} is no SD 1.5 base with epsilon prediction; these layer files fit no other")
    if method.frames > 1 and arguments.backgrounds is None:
        raise SystemExit(f"{method.id} learns from scenes: name a folder of --backgrounds too")
    size = arguments.size or checkpoint.native_size
    if size % LEAST_SIZE:
        raise SystemExit(f"--size {size} is no multiple of {LEAST_SIZE}")
    where = device()
    base = checkpoint.unet(torch.float32, where)
    vae = checkpoint.vae(torch.float32, where)
    (text_encoder,) = checkpoint.text_encoders(torch.float32, where)
    for frozen in (base, vae, text_encoder):
        frozen.requires_grad_(False).eval()
    backgrounds = captioned(arguments.backgrounds) if method.frames > 1 else []
    encoder = load_offset_encoder(arguments.encoder, torch.float32, where)
    draw = Scenes(method, vae, encoder, captioned(arguments.cutouts), backgrounds, size, arguments.batch)

    if arguments.start:
        model = SharingModel.read(arguments.start, base).requires_grad_(True).train()
    else:
        model = network(base, method.id, arguments.rank, arguments.control_width).to(where)
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.rate, weight_decay=1e-2)
    average = Average(model, 0.999)
    arguments.work.mkdir(parents=True, exist_ok=True)
    run = Run(arguments.work, method.id, minutes=arguments.minutes, rate=arguments.rate)
    embed: Callable[[list[str]], torch.Tensor] = lambda texts: encode_sd15(text_encoder, texts)  # noqa: E731
    learn(run, model, optimizer, average, base, embed, draw, method.outputs)
    save_file({name: value.cpu().half().contiguous() for name, value in average.values.items()}, arguments.out)
    print(f"written: {arguments.out}; put it into the models folder under the name {method.file}")


def main(given: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    methods = [name for name, method in METHODS.items() if method.family == "sd15"]
    parser.add_argument("--method", required=True, choices=methods)
    parser.add_argument("--base", type=Path, required=True, help="SD 1.5 base, a .safetensors file or diffusers folder")
    parser.add_argument("--encoder", type=Path, required=True, help="layer_sd15_vae_transparent_encoder.safetensors")
    parser.add_argument("--cutouts", type=Path, required=True, help="folder of pictures with alpha")
    parser.add_argument("--backgrounds", type=Path, help="folder of pictures; for the kinds of several frames")
    parser.add_argument("--out", type=Path, required=True, help="the layer file to write")
    parser.add_argument("--start", type=Path, help="a layer file of this kind to train on")
    parser.add_argument("--size", type=int, help="side of the pictures; the base's own by default")
    parser.add_argument("--rank", type=int, default=256, help="of the low-rank changes; 256 in the released files")
    parser.add_argument("--control-width", type=int, default=256, help="of the control encoder, likewise")
    parser.add_argument("--batch", type=int, default=4, help="scenes in a step")
    parser.add_argument("--rate", type=float, default=1e-4, help="learning rate (AdamW)")
    parser.add_argument("--minutes", type=float, default=600)
    parser.add_argument("--work", type=Path, default=Path("build/own"), help="folder for checkpoints and the log")
    train(parser.parse_args(given))


if __name__ == "__main__":
    main()
