"""What the shipped files can do, measured: one table on the held-out 5% of pictures, contact sheets through the engine,
and, of 100 subjects drawn at random, what onlookers can name, how sharp they are and whether colour words hold.

The round trip is picture -> offset encoder and VAE -> latent -> VAE and transparent decoder (eight views) -> picture,
through the engine's own functions and the shipped fp16 files; these pictures were in no stage's training.

    python -m training.evaluate --work build/training --sheet sheet.png --drawn drawn
    python -m training.evaluate --work build/training --answers drawn/answers.json

The first writes `drawn/sheet-N.png` for onlookers, and beside them `drawn/subjects.json`, which they must not see.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from layerdiffuse_mcp.engine.transparency.decode import decode
from layerdiffuse_mcp.engine.transparency.encode import transparent_latent
from layerdiffuse_mcp.engine.transparency.networks import load_decoder, load_offset_encoder
from layerdiffuse_mcp.engine.weights.reader import read_checkpoint
from layerdiffuse_mcp.families.spec import Task
from training import data, mixing
from training.concepts import with_article
from training.drawn import COLOURS, colour_prompts, colours_right, named, sharpness, sheets, subjects
from training.sample import PROMPTS, checkerboard, sheet
from training.vocabulary import vocabulary

SOFT = (16 / 255, 239 / 255)
TASKS = ((Task.BACKGROUND_FROM_FOREGROUND, "foreground"), (Task.FOREGROUND_FROM_BACKGROUND, "background"))
SCENES = [
    "a red apple on a meadow",
    "a cat on a beach",
    "a red car at sunset",
    "a penguin in the snow",
    "a hamburger on a wooden table",
    "a rocket at night with stars",
]


@torch.inference_mode()
def round_trip(
    folder: Path, pictures: np.ndarray, augmented: bool = True, offset: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decoded [alpha, r, g, b] and the VAE's pixels for each picture (uint8 N, H, W, 4)."""
    checkpoint = read_checkpoint(folder / "pocket.safetensors")
    vae = checkpoint.vae(torch.float32)
    decoder = load_decoder(folder / "layer_sd15_vae_transparent_decoder.safetensors")
    encoder = load_offset_encoder(folder / "layer_sd15_vae_transparent_encoder.safetensors")
    if not offset:
        encoder.output_scale = 0.0
    seen, plain = [], []
    for picture in pictures:
        latent = transparent_latent(vae, encoder, np.ascontiguousarray(picture))
        pixel = (vae.decode(latent).sample / 2 + 0.5).clamp(0, 1)
        seen.append(decode(decoder, pixel, latent, augmented=augmented).clamp(0, 1))
        plain.append(pixel)
    return torch.cat(seen), torch.cat(plain)


def measures(seen: torch.Tensor, pixel: torch.Tensor, rgba: torch.Tensor) -> dict[str, float]:
    """The table's numbers for decoded pictures, the VAE's pixels, and the truth (B, 4, H, W: r, g, b, alpha)."""
    alpha, colour = rgba[:, 3:], rgba[:, :3]
    wrong = (seen[:, :1] - alpha).abs()
    soft = (alpha > SOFT[0]) & (alpha < SOFT[1])
    still = soft & (seen[:, :1] > SOFT[0]) & (seen[:, :1] < SOFT[1])
    inside, guessed = alpha > 0.5, seen[:, :1] > 0.5
    squared = ((seen[:, 1:] - colour) ** 2).mean(1, keepdim=True)
    shown = alpha > 0
    each = [-10 * torch.log10(s[m].mean().clamp(min=1e-9)) for s, m in zip(squared, shown, strict=True) if m.any()]
    vae_error = ((pixel - mixing.flattened(rgba)) ** 2).mean((1, 2, 3)).clamp(min=1e-9)
    return {
        "VAE on grey, dB": float((-10 * torch.log10(vae_error)).mean()),
        "alpha error, of 255": float(wrong.mean()) * 255,
        "alpha error where 16 < alpha < 239": float(wrong[soft].mean()) * 255,
        "soft pixels kept soft, %": float(still.sum() / soft.sum()) * 100,
        "alpha IoU at 0.5": float((inside & guessed).sum() / (inside | guessed).sum()),
        "colour where alpha > 0, dB": float(torch.stack(each).mean()),
    }


def table(work: Path, folder: Path, count: int) -> str:
    """Markdown: held-out pictures, the same with soft alpha added, and held-out ones without the offset."""
    pictures, rows = data.load(work)
    held = np.array(pictures[[number for number, row in enumerate(rows) if row["held_out"]]])[:count]
    softened = mixing.soften(mixing.to_tensor(held), torch.Generator().manual_seed(7), share=1.0)
    soft_bytes = (softened.permute(0, 2, 3, 1).numpy() * 255).round().astype(np.uint8)
    columns = {
        "held out": measures(*round_trip(folder, held), mixing.to_tensor(held)),
        "softened": measures(*round_trip(folder, soft_bytes), mixing.to_tensor(soft_bytes)),
        "one view": measures(*round_trip(folder, held, augmented=False), mixing.to_tensor(held)),
        "no offset": measures(*round_trip(folder, held, offset=False), mixing.to_tensor(held)),
    }
    lines = ["| " + " | ".join(["", *columns]) + " |", "|---|" + "---:|" * len(columns)]
    lines += [
        f"| {name} | "
        + " | ".join(
            f"{column[name]:.3g}" if column[name] < 1 else f"{column[name]:.2f}" for column in columns.values()
        )
        + " |"
        for name in next(iter(columns.values()))
    ]
    return "\n".join(lines)


class Studio:
    """The engine on exported files, as on a user's own base; its pictures go into `folder`."""

    def __init__(self, folder: Path, pocket: Path) -> None:
        from layerdiffuse_mcp.engine.engine import Engine
        from layerdiffuse_mcp.settings import Settings

        self.folder = folder
        models = folder / "models"
        models.mkdir()
        for file in pocket.glob("*.safetensors"):
            shutil.copy(file, models / file.name.replace("pocket.", "trained."))
        self.settings = Settings(output_dir=folder, read_dirs=(folder,), models_dir=models, model="trained")
        self.engine = Engine(self.settings)

    def draw(self, prompt: str, **given: object) -> dict[str, Path]:
        """The layers of one result, by role."""
        from layerdiffuse_mcp.api.requests import GenerateRequest
        from layerdiffuse_mcp.jobs.planner import plan
        from layerdiffuse_mcp.outputs.writer import saved

        request = GenerateRequest.model_validate({"prompt": prompt, **given})
        planned = plan(request, self.settings)
        drawn = saved(self.engine.run(planned.tasks[0], planned.inputs, lambda *_: None), self.folder)
        return {image.role: image.path for image in drawn.images}


def shown(path: Path) -> torch.Tensor:
    """(1, 3, H, W): a picture on a checkerboard."""
    return checkerboard(mixing.to_tensor(np.asarray(Image.open(path).convert("RGBA"))[None]))


def contact_sheet(pocket: Path, prompts: list[str], seed: int, guidance: float | None) -> Image.Image:
    """A picture for each prompt through the engine, on a checkerboard."""
    with tempfile.TemporaryDirectory() as folder:
        studio = Studio(Path(folder), pocket)
        found = [shown(studio.draw(prompt, seed=seed, guidance_scale=guidance)["foreground"]) for prompt in prompts]
        studio.engine.close()
    return sheet(torch.cat(found))


def recomposed(layers: dict[str, Path]) -> float:
    """The mean difference, of 255, of foreground over background from the blended picture drawn with them."""
    foreground, background, blended = (
        mixing.to_tensor(np.asarray(Image.open(layers[role]).convert("RGBA"))[None])
        for role in ("foreground", "background", "blended")
    )
    return float((mixing.composite(foreground, background[:, :3]) - blended[:, :3]).abs().mean()) * 255


def layers_sheet(pocket: Path, scenes: list[str], seed: int) -> Image.Image:
    """A row a scene: drawn together (foreground, background, blended); background and blended picture for that
    foreground; foreground and blended picture for that background.
    """
    found = []
    with tempfile.TemporaryDirectory() as folder:
        studio = Studio(Path(folder), pocket)
        for scene in scenes:
            joint = studio.draw(scene, seed=seed, task=Task.LAYERS)
            print(f"{scene}: recomposed, {recomposed(joint):.1f} of 255 from the blended picture", flush=True)
            rows = [joint[role] for role in ("foreground", "background", "blended")]
            for task, role in TASKS:
                made = studio.draw(scene, seed=seed, task=task, inputs={role: joint[role]})
                rows += [path for name, path in made.items() if name != "blended"] + [made["blended"]]
            found += [shown(path) for path in rows]
        studio.engine.close()
    return sheet(torch.cat(found), columns=7)


def drawn(work: Path, pocket: Path, folder: Path, seed: int, coloured: bool) -> str:
    """Draws the subjects and their sheets into `folder`, and if `coloured` some in every colour. A Markdown table."""
    asked = [words for words in subjects() if words[0] in known_subjects(pocket)]
    cutout = {subject.words[0]: subject.pictures.get("3d") for subject in vocabulary(work)}
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        studio = Studio(Path(scratch), pocket)

        def draw(prompt: str) -> torch.Tensor:
            path = studio.draw(prompt, seed=seed)["foreground"]
            return mixing.to_tensor(np.asarray(Image.open(path).convert("RGBA"))[None])

        pictures = torch.cat([draw(with_article(words[0])) for words in asked])
        for number, image in enumerate(sheets(pictures), 1):
            image.save(folder / f"sheet-{number}.png")
        (folder / "subjects.json").write_text(json.dumps(asked))
        truth = mixing.to_tensor(np.stack([cutout[words[0]] for words in asked]))
        rows = {"gradient energy, of the training pictures'": sharpness(pictures, truth)}
        if coloured:
            prompts, colours = zip(*colour_prompts(), strict=True)
            tinted = torch.cat([draw(prompt) for prompt in prompts])
            sheet(checkerboard(tinted), columns=len(COLOURS)).save(folder / "colours.png")
            rows[f"colour as asked for, of {len(prompts)}"] = colours_right(tinted, colours)
        studio.engine.close()
    rows[f"known, of {len(subjects())} subjects drawn at random"] = len(asked)
    return "\n".join(["| drawn | |", "|---|---:|", *(f"| {name} | {value:.3g} |" for name, value in rows.items())])


def known_subjects(pocket: Path) -> set[str]:
    """The main words of what the files in this folder have learnt."""
    return {*json.loads((pocket / "concepts.json").read_text())["subjects"]}


def answered(file: Path) -> str:
    """What the onlookers named, and what they did not. The subjects are in `subjects.json` beside their answers."""
    asked = json.loads((file.parent / "subjects.json").read_text())
    answers = json.loads(file.read_text())
    right = named(answers, asked)
    missed = [
        f"{words[0]}: {' / '.join(given[number] for given in answers)}"
        for number, words in enumerate(asked)
        if not right[number]
    ]
    return "\n".join([f"named by most of {len(answers)}: {sum(right)} of {len(asked)}", *missed])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/training"))
    parser.add_argument("--pocket", type=Path, default=Path("layerdiffuse_mcp/pocket"))
    parser.add_argument("--count", type=int, default=1000, help="how many held-out pictures at most; 0: no table")
    parser.add_argument("--sheet", type=Path, help="where the contact sheet goes")
    parser.add_argument("--layers-sheet", type=Path, help="where the sheet of the other layer methods goes")
    parser.add_argument("--drawn", type=Path, help="where the numbered sheets of random subjects go")
    parser.add_argument("--colours", action="store_true", help="with --drawn: colour words over subjects too")
    parser.add_argument("--answers", type=Path, help="only count onlookers' answers to these sheets")
    parser.add_argument("--prompts", type=json.loads, default=PROMPTS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--guidance", type=float)
    arguments = parser.parse_args()
    if arguments.answers:
        print(answered(arguments.answers))
        return
    if arguments.count:
        print(table(arguments.work, arguments.pocket, arguments.count))
    if arguments.sheet:
        contact_sheet(arguments.pocket, arguments.prompts, arguments.seed, arguments.guidance).save(arguments.sheet)
    if arguments.drawn:
        print(drawn(arguments.work, arguments.pocket, arguments.drawn, arguments.seed, arguments.colours))
    if arguments.layers_sheet:
        layers_sheet(arguments.pocket, SCENES, arguments.seed).save(arguments.layers_sheet)


if __name__ == "__main__":
    main()
