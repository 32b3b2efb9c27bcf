"""A layer file for your own base, from your own pictures: any of the ten methods, in the released format.

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
Methods that change whole weights (all of SDXL's but `layer_xl_transparent_attn`) train up to 1.8 billion numbers.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file, save_file

from layerdiffuse_mcp.engine.layers.attention_sharing_file import SharingModel
from layerdiffuse_mcp.engine.text.clip_embeddings import encode_sd15, encode_sdxl, sdxl_vector
from layerdiffuse_mcp.engine.transparency.encode import transparent_latent
from layerdiffuse_mcp.engine.transparency.networks import OffsetEncoder, load_offset_encoder
from layerdiffuse_mcp.engine.types import Conditioning
from layerdiffuse_mcp.engine.weights.checkpoint import Checkpoint
from layerdiffuse_mcp.engine.weights.reader import read_checkpoint
from layerdiffuse_mcp.families.registry import FAMILIES, METHODS
from layerdiffuse_mcp.families.spec import LayerMethod
from layerdiffuse_mcp.images.alpha import Bytes, composite, on_grey, to_float
from layerdiffuse_mcp.images.read import read_picture
from training.common import Average, Run, device
from training.layer import OWN_PROMPTS, Batch, learn, network, through
from training.offset_model import OffsetModel
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

    method: LayerMethod
    vae: AutoencoderKL
    encoder: OffsetEncoder
    cutouts: list[Captioned]
    backgrounds: list[Captioned]
    size: int
    count: int

    def __call__(self, rng: np.random.Generator) -> Batch:
        latents, texts, control, behind = [], [], [], []
        for _ in range(self.count):
            pictures, said = self.scene(rng)
            latents += [self.latent(pictures[role], role == self.method.transparent) for role in self.method.outputs]
            texts += self.texts(said, rng)
            given = [pictures[role] for role in self.method.inputs]
            if given and self.method.family == "sd15":
                control += [torch.from_numpy(on_grey(picture)).permute(2, 0, 1)[None] for picture in given]
            elif given:
                behind.append(torch.cat([self.latent(picture, False) for picture in given], 1))
        return Batch(
            torch.cat(latents).cpu(), texts, *(torch.cat(them) if them else None for them in (control, behind))
        )

    def scene(self, rng: np.random.Generator) -> tuple[dict[str, Bytes], dict[str, str]]:
        """Pictures (size, size, 4) by role, and what is said of them."""
        foreground = self.cutouts[rng.integers(len(self.cutouts))]
        pictures = {"foreground": placed(foreground.rgba(), self.size, rng)}
        said = {"foreground": foreground.text}
        if self.backgrounds:
            background = self.backgrounds[rng.integers(len(self.backgrounds))]
            pictures["background"] = covering(background.rgba(), self.size, rng)
            blended = composite(pictures["foreground"], to_float(pictures["background"])[..., :3])
            pictures["blended"] = np.concatenate([blended, pictures["background"][..., 3:]], axis=-1)
            said["background"] = background.text
        return pictures, said

    @torch.no_grad()
    def latent(self, rgba: Bytes, transparent: bool) -> torch.Tensor:
        """(1, 4, size / 8, size / 8), scaled: of the picture with its alpha, or of the picture on mid-grey."""
        if transparent:
            return transparent_latent(self.vae, self.encoder, rgba)
        image = torch.from_numpy(on_grey(rgba)).permute(2, 0, 1)[None].to(self.vae.device)
        return self.vae.encode(image * 2 - 1).latent_dist.mean * self.vae.config.scaling_factor

    def texts(self, said: dict[str, str], rng: np.random.Generator) -> list[str]:
        """A text for each frame: none, the whole scene's for all, or each frame's own before it."""
        chance, whole = rng.random(), ", ".join(said.values())
        if chance < EMPTY_SHARE:
            return [""] * self.method.frames
        if self.method.frames == 1:
            return [said.get(self.method.outputs[0], whole)]
        if chance < 1 - OWN_PROMPTS:
            return [whole] * self.method.frames
        return [", ".join(filter(None, (said.get(role), whole))) for role in self.method.outputs]


class Trainee(NamedTuple):
    """What is trained, what it predicts, and its tensors as the release names them, of a state dict of it."""

    model: torch.nn.Module
    predict: Callable[[torch.Tensor, torch.Tensor, Batch], torch.Tensor]
    released: Callable[[Mapping[str, torch.Tensor]], Mapping[str, torch.Tensor]]


def sharing(checkpoint: Checkpoint, arguments: argparse.Namespace) -> Trainee:
    """An SD 1.5 file."""
    base = checkpoint.unet(torch.float32, device()).requires_grad_(False).eval()
    (text_encoder,) = checkpoint.text_encoders(torch.float32, device())
    if arguments.start:
        model = SharingModel.read(arguments.start, base).requires_grad_(True).train()
    else:
        model = network(base, arguments.method, arguments.rank, arguments.control_width).to(device())
    return Trainee(model, through(base, model, lambda texts: encode_sd15(text_encoder, texts)), dict)


def offsets(checkpoint: Checkpoint, arguments: argparse.Namespace) -> Trainee:
    """An SDXL file."""
    size = arguments.size or checkpoint.native_size
    base = checkpoint.unet(torch.bfloat16 if device().type == "cuda" else torch.float32).requires_grad_(False).eval()
    model = OffsetModel(base, METHODS[arguments.method], arguments.rank).to(device())
    base.to(device())
    encoders = checkpoint.text_encoders(torch.float32, device())
    if arguments.start:
        model.start_from(load_file(arguments.start))

    def predict(noisy: torch.Tensor, steps: torch.Tensor, batch: Batch) -> torch.Tensor:
        with torch.no_grad():
            context, pooled = encode_sdxl(*encoders, batch.texts, negative=True)  # no text is zeros, as when drawing
        x = noisy if batch.behind is None else torch.cat([noisy, batch.behind.to(noisy)], 1)
        return model(base, x.to(base.dtype), steps, Conditioning(context, sdxl_vector(pooled, size, size)))

    return Trainee(model, predict, model.released)


TRAINEES: Mapping[str, Callable[[Checkpoint, argparse.Namespace], Trainee]] = {"sd15": sharing, "sdxl": offsets}


def train(arguments: argparse.Namespace) -> None:
    """Writes `arguments.out`."""
    method = METHODS[arguments.method]
    checkpoint = read_checkpoint(arguments.base)
    if checkpoint.family != method.family or checkpoint.prediction != "epsilon":
        raise SystemExit(f"{arguments.base} is no {FAMILIES[method.family].title} base with epsilon prediction")
    scenic = {*method.inputs, *method.outputs} != {"foreground"}
    if scenic and arguments.backgrounds is None:
        raise SystemExit(f"{method.id} learns from scenes: name a folder of --backgrounds too")
    size = arguments.size or checkpoint.native_size
    if size % LEAST_SIZE:
        raise SystemExit(f"--size {size} is no multiple of {LEAST_SIZE}")
    cutouts, backgrounds = captioned(arguments.cutouts), captioned(arguments.backgrounds) if scenic else []
    vae = checkpoint.vae(torch.float32, device()).requires_grad_(False).eval()
    encoder = load_offset_encoder(arguments.encoder, torch.float32, device())
    draw = Scenes(method, vae, encoder, cutouts, backgrounds, size, arguments.batch)

    model, predict, released = TRAINEES[method.family](checkpoint, arguments)
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.rate, weight_decay=1e-2)
    average = Average(model, 0.999)
    arguments.work.mkdir(parents=True, exist_ok=True)
    run = Run(arguments.work, method.id, minutes=arguments.minutes, rate=arguments.rate, steps=arguments.steps)
    learn(run, model, optimizer, average, draw, predict, method.outputs)
    tensors = {key: value.cpu().half().contiguous() for key, value in released(average.values).items()}
    save_file(tensors, arguments.out)
    print(f"written: {arguments.out}; put it into the models folder under the name {method.file}")


def main(given: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    methods = [name for name, method in METHODS.items() if method.family in TRAINEES]
    parser.add_argument("--method", required=True, choices=methods)
    parser.add_argument("--base", type=Path, required=True, help="a .safetensors file or diffusers folder")
    parser.add_argument("--encoder", type=Path, required=True, help="the family's vae_transparent_encoder file")
    parser.add_argument("--cutouts", type=Path, required=True, help="folder of pictures with alpha")
    parser.add_argument("--backgrounds", type=Path, help="folder of pictures; for methods of more than a foreground")
    parser.add_argument("--out", type=Path, required=True, help="the layer file to write")
    parser.add_argument("--start", type=Path, help="a layer file of this method to train on, in the released layout")
    parser.add_argument("--size", type=int, help="side of the pictures; the base's own by default")
    parser.add_argument("--rank", type=int, default=256, help="of low-rank changes; 256 in the released files")
    parser.add_argument("--control-width", type=int, default=256, help="of the control encoder (SD 1.5), likewise")
    parser.add_argument("--batch", type=int, default=4, help="scenes in a step")
    parser.add_argument("--rate", type=float, default=1e-4, help="learning rate (AdamW)")
    parser.add_argument("--minutes", type=float, default=600)
    parser.add_argument("--steps", type=int, help="end after so many steps, however long they take")
    parser.add_argument("--work", type=Path, default=Path("build/own"), help="folder for checkpoints and the log")
    train(parser.parse_args(given))


if __name__ == "__main__":
    main()
