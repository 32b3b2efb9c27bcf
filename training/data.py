"""The pictures the pocket model learns from: openly licensed emoji with alpha, and a few drawn by `sprites.py`,
rendered to one array.

Sources, installed by name from npm: Fluent Emoji by Microsoft in three renderings (MIT) and Noto Emoji by Google
(Apache-2.0); names from unicode-emoji-json (MIT). Flags, people, faces and symbols are left out, but for
what `ALSO` names. The result under the work folder is

    pictures.npy   uint8 (N, 128, 128, 4), straight alpha, colour spread into the transparent part
    pictures.json  a list of N rows: name, style, held_out

    python -m training.data --work build/training
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
from concurrent.futures import ProcessPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from training.concepts import concepts
from training.padding import spread_colour
from training.sprites import sprites

SIZE = 128
PACKAGES = [
    "@lobehub/fluent-emoji-3d",
    "@iconify-json/fluent-emoji",
    "@iconify-json/fluent-emoji-flat",
    "@iconify-json/noto",
    "unicode-emoji-json",
]
GROUPS = {"Animals & Nature", "Food & Drink", "Travel & Places", "Activities", "Objects"}
ALSO = {"red heart"}
NO_3D = {"treasure chest"}  # only Noto has it: its picture is the one that is learnt by name
SVG_STYLES = {"colour": "fluent-emoji", "flat": "fluent-emoji-flat", "noto": "noto"}


def install(work: Path) -> Path:
    """Installs the npm packages below `work` once; returns their node_modules folder."""
    modules = work / "npm" / "node_modules"
    missing = [name for name in PACKAGES if not (modules / name).exists()]
    if missing:
        npm = shutil.which("npm")
        if npm is None:
            raise SystemExit("npm was not found: install Node.js, or unpack " + ", ".join(missing) + f" into {modules}")
        modules.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([npm, "install", "--no-audit", "--no-fund", *missing], cwd=modules.parent, check=True)
    return modules


def slug(name: str) -> str:
    """The icon-set name of a Unicode name: "T-Rex" -> "t-rex"."""
    kept = "".join(char if char.isalnum() or char in " -" else "" for char in name.lower())
    return "-".join(kept.split())


def straight(image: Image.Image) -> np.ndarray:
    """An RGBA picture at the training size as uint8, resized with premultiplied colour."""
    side = max(image.size)
    square = Image.new("RGBA", (side, side))
    square.paste(image.convert("RGBA"), ((side - image.width) // 2, (side - image.height) // 2))
    rgba = np.asarray(square.resize((2 * SIZE, 2 * SIZE)) if side != 2 * SIZE else square, np.float32) / 255
    premultiplied = np.concatenate([rgba[..., :3] * rgba[..., 3:], rgba[..., 3:]], -1)
    small = premultiplied.reshape(SIZE, 2, SIZE, 2, 4).mean((1, 3))
    return spread(small[..., :3] / np.maximum(small[..., 3:], 1e-4), small[..., 3:])


def spread(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Colour (H, W, 3) and alpha (H, W, 1) in 0..1 -> uint8 RGBA: true colour where alpha > 0, the spread colour
    elsewhere.
    """
    colour, weight = (torch.from_numpy(np.clip(part, 0, 1)).permute(2, 0, 1)[None] for part in (rgb, alpha))
    padded = spread_colour(colour, weight)
    kept = torch.where(weight > 8 / 255, colour, padded)
    return (torch.cat([kept, weight], 1)[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)


def render_svg(svg: str) -> np.ndarray:
    """An SVG at twice the training size, down to it. (The PNG that resvg_py writes holds straight colour.)"""
    import resvg_py

    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=2 * SIZE, height=2 * SIZE))
    return straight(Image.open(BytesIO(png)))


def _load(job: tuple[str, str, str]) -> np.ndarray | None:
    torch.set_num_threads(1)
    _, source, name = job
    try:
        return render_svg(source) if source.startswith("<svg") else straight(Image.open(source))
    except (OSError, ValueError) as error:
        print("left out", name, error)
        return None


def jobs(modules: Path) -> list[tuple[str, str, str]]:
    """(style, file or SVG text, name) of every picture, in a fixed order."""
    emoji = json.loads((modules / "unicode-emoji-json/data-by-emoji.json").read_text())
    sets = {
        style: json.loads((modules / "@iconify-json" / package / "icons.json").read_text())
        for style, package in SVG_STYLES.items()
    }
    found: list[tuple[str, str, str]] = []
    for char, facts in emoji.items():
        name = facts["name"]
        if facts["group"] not in GROUPS and name not in ALSO:
            continue
        code = "-".join(f"{ord(c):04x}" for c in char)
        for candidate in (code, code.replace("-fe0f", ""), code + "-fe0f"):
            file = modules / "@lobehub/fluent-emoji-3d/assets" / f"{candidate}.webp"
            if file.exists():
                found.append(("3d", str(file), name))
                break
        for style, icons in sets.items():
            icon = icons["icons"].get(slug(name))
            if icon is not None:
                side = icon.get("width", icons.get("width", 32)), icon.get("height", icons.get("height", 32))
                body = icon["body"]
                svg = (
                    f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
                    f'viewBox="0 0 {side[0]} {side[1]}">{body}</svg>'
                )
                found.append((style, svg, name))
    found += [(style, svg, name) for name, style, svg in sprites()]
    return found


def held_out(style: str, name: str, vocabulary: set[str]) -> bool:
    """5% of the pictures, chosen by a hash of their names; pictures the base learns by name are never among them."""
    if name in vocabulary and (style == "3d" or name in NO_3D):
        return False
    return int(hashlib.sha256(f"{style}/{name}".encode()).hexdigest(), 16) % 1000 < 53


def build(work: Path) -> None:
    """Writes pictures.npy and pictures.json below `work`; does nothing when both are there."""
    if (work / "pictures.json").exists():
        return
    todo = jobs(install(work))
    with ProcessPoolExecutor(2) as pool:
        arrays = list(pool.map(_load, todo, chunksize=16))
    vocabulary = {*concepts(wide=True)}
    rows, kept = [], []
    for (style, _, name), array in zip(todo, arrays, strict=True):
        if array is not None and (array[..., 3] > 0).any():
            rows.append({"name": name, "style": style, "held_out": held_out(style, name, vocabulary)})
            kept.append(array)
    missing = vocabulary - NO_3D - {row["name"] for row in rows if row["style"] == "3d"}
    if missing:
        print("not found in 3d:", sorted(missing))
    np.save(work / "pictures.npy", np.stack(kept))
    (work / "pictures.json").write_text(json.dumps(rows))
    print(len(rows), "pictures,", sum(row["held_out"] for row in rows), "held out")


def load(work: Path) -> tuple[np.ndarray, list[dict]]:
    """The pictures (uint8 N, 128, 128, 4, memory-mapped) and their rows."""
    return np.load(work / "pictures.npy", mmap_mode="r"), json.loads((work / "pictures.json").read_text())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/training"))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    build(arguments.work)
