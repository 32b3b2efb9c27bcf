"""The tables of a GPU: full-size networks with random weights, every part in a process of its own.

    python -m benchmarks.gpu [--out build/gpu] [--parts picture_sdxl decode ...] [--minutes 9]
    python -m benchmarks.gpu --rehearse     # the same code on a CPU, with small networks and pictures

A part that is done is a JSON file in `--out`, and is not measured again; after `--minutes` no further part begins, and
the same command goes on with what is left. All that is done is printed, and joined into `gpu.md`. Model files are
written once into `--out`. "Plain" is diffusers' pipeline as `picture.py` has it, with and without channels last. Its
layer file is left out: fused, it changes the values of weights and not the work. Nothing is compiled on either side;
the tables named `tune_...` and `streamed` say what compiling and other ways would bring (see `_tuning.py`).
Seconds are medians (5 rounds, 3 where the batch grows; loading and switching happen once), the device synchronised
before and after; memory is the peak of what torch has allocated on the device.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import torch

sys.path.insert(0, str(Path(__file__).parent))  # where the other scripts are, run as a module too

from _full_size import SD15, fill, ldm_shapes, sdxl, unet_without_weights, write
from _report import apart, header, table, text
from _tuning import FAILURES, NETWORKS, streamed, ways
from picture import BASES, Job, Plain, drawing, drawn_by_us, fresh, measured, peak_rate, work, write_files
from switching import RANK
from torch import Tensor

from layerdiffuse_mcp.api.outcome import Progress
from layerdiffuse_mcp.engine.layers.attention_sharing import shared_attention
from layerdiffuse_mcp.engine.layers.attention_sharing_file import SharingModel
from layerdiffuse_mcp.engine.models.networks import UNetNetwork
from layerdiffuse_mcp.engine.startup import DEFAULTS
from layerdiffuse_mcp.engine.transparency.decode import VIEWS, decode
from layerdiffuse_mcp.engine.transparency.networks import TransparentDecoder
from layerdiffuse_mcp.engine.types import Conditioning
from layerdiffuse_mcp.engine.weights.reader import read_checkpoint
from layerdiffuse_mcp.errors import LayerDiffuseError
from layerdiffuse_mcp.settings import Offload

Rows = list[Sequence[Any]]
"""Of a table, the first one being the names of its columns."""
METHODS = ("layer_xl_transparent_attn", "layer_xl_transparent_conv")


@dataclass(frozen=True)
class Scale:
    """How much is measured, and on what."""

    device: str = "cuda"
    sizes: tuple[tuple[str, int], ...] = (("sd15", 512), ("sdxl", 1024))
    steps: int = 20
    rounds: int = 5
    dtypes: tuple[str, ...] = ("float16", "bfloat16")
    width: int = 320

    def job(self, out: Path, family: str, dtype: str = "") -> Job:
        """A picture of the family's size; in the first of the dtypes unless one is named."""
        named: torch.dtype = getattr(torch, dtype or self.dtypes[0])
        return Job(out / "models", family, dict(self.sizes)[family], self.steps, self.rounds, named, self.device)


REHEARSAL = Scale("cpu", (("sd15", 64), ("sdxl", 64)), steps=2, rounds=1, dtypes=("float32", "bfloat16"), width=64)


def written(scale: Scale, out: Path) -> None:
    """The files of both families, and a second layer file of SDXL."""
    folder, config = out / "models", sdxl(scale.width)
    folder.mkdir(parents=True, exist_ok=True)
    BASES["sdxl"] = config, BASES["sdxl"][1]
    for family, _ in scale.sizes:
        write_files(folder, family)
    shapes = ldm_shapes(unet_without_weights(config)).items()
    whole = {key: shape for key, shape in shapes if "transformer_blocks" not in key and "_embed" not in key}
    offsets = {f"diffusion_model.{key}::diff::0": shape for key, shape in whole.items()}
    write(folder / f"{METHODS[1]}.safetensors", offsets, gain=0.05)


def picture(family: str, scale: Scale, out: Path) -> Rows:
    """Whole pictures, ours beside diffusers' pipeline."""
    rows: Rows = [("dtype", "way", "seconds", "speed", "peak GB", "TFLOP")]
    for dtype in scale.dtypes:
        job = scale.job(out, family, dtype)
        ways = [(f"plain{', channels last' * last}", *apart(drawn_by_diffusers, job, bool(last))) for last in (0, 1)]
        ways.append(("ours", *apart(drawn_by_us, job), ways[0][3]))
        rows += [(dtype, way, took, ways[0][1] / took, peak, done) for way, took, peak, done in ways]
    return rows


def drawn_by_diffusers(job: Job, channels_last: bool) -> tuple[float, float, float]:
    """Seconds, gigabytes at the peak, and a picture's work in 10^12 operations."""
    plain = Plain(read_checkpoint(job.folder / f"{job.family}.safetensors"), job.family, job.dtype, job.device)
    for network in (plain.pipeline.unet, plain.pipeline.vae, plain.decoder) if channels_last else ():
        network.to(memory_format=torch.channels_last)
    path = job.folder / "plain.png"
    operations = work(plain, job.size, job.steps, path)
    return *measured(lambda: plain(job.size, job.steps, path), job), operations / 1e12


def phases(scale: Scale, out: Path) -> Rows:
    """Seconds of each phase of our pictures, as they report it."""
    rows: Rows = [("family", "until the first step is done", "a further step", "VAE and views", "rest", "whole")]
    for family, _ in scale.sizes:
        draw = drawing(scale.job(out, family))
        draw()
        each = [_phases(draw, scale.device) for _ in range(scale.rounds)]
        rows.append((family, *map(statistics.median, zip(*each, strict=True))))
    return rows


def _phases(draw: Callable[..., object], device: str) -> tuple[float, ...]:
    reached: dict[str, list[float]] = {"denoising": [], "decoding": []}

    def report(progress: Progress) -> None:
        reached.get(progress.message.partition(" ")[0], []).append(now(device))

    began = now(device)
    draw(report)
    ended, steps, views = now(device), reached["denoising"], reached["decoding"]
    step = (steps[-1] - steps[0]) / max(1, len(steps) - 1)
    return steps[0] - began, step, views[-1] - steps[-1], ended - views[-1], ended - began


def offload(scale: Scale, out: Path) -> Rows:
    """Our SDXL pictures by what leaves the device."""
    job = scale.job(out, "sdxl")
    return [("level", "seconds", "peak GB"), *((level, *apart(offloaded, job, level)) for level in OFFLOAD)]


OFFLOAD = tuple(level for level in get_args(Offload) if level != "auto")


def offloaded(job: Job, level: str) -> tuple[float, float]:
    """Seconds and gigabytes at the peak."""
    return measured(drawing(job, offload=level), job)


def batch(scale: Scale, out: Path) -> Rows:
    """Our SDXL pictures, several asked for at once."""
    job = replace(scale.job(out, "sdxl"), rounds=min(3, scale.rounds))
    draw = drawing(job)
    rows: Rows = [("pictures", "seconds a picture", "speed", "peak GB")]
    for count in (1, 2, 4, 8):
        seconds, peak = measured(partial(draw, count=count), job)
        rows.append((count, seconds / count, rows[1][1] * count / seconds if rows[1:] else 1.0, peak))
    return rows


@torch.inference_mode()
def views(scale: Scale, out: Path) -> Rows:
    """The transparent decode of an SDXL picture, eight views, after the VAE."""
    job = scale.job(out, "sdxl")
    decoder = TransparentDecoder().eval().to(job.device, job.dtype)
    pixel = torch.rand(1, 3, job.size, job.size, dtype=job.dtype, device=job.device)
    latent = torch.randn(1, 4, job.size // 8, job.size // 8, dtype=job.dtype, device=job.device)

    def plain() -> Tensor:
        seen: list[Tensor] = []
        for flipped, turns in VIEWS:
            turned = (torch.rot90(part.flip(3) if flipped else part, turns, (2, 3)) for part in (pixel, latent))
            back = decoder(*turned).clamp(0, 1).rot90(-turns, (2, 3))
            seen.append(back.flip(3) if flipped else back)
        return torch.stack(seen).median(dim=0).values

    whole = drawn(out, scale.dtypes[0])
    rows: Rows = [("way", "seconds", "speed", "peak GB", "of an SDXL picture, %")]
    for way, call in (("plain, one after another", plain), ("ours", lambda: decode(decoder, pixel, latent))):
        seconds, peak = measured(call, job)
        speed = rows[1][1] / seconds if rows[1:] else 1.0
        rows.append((way, seconds, speed, peak, 100 * seconds / whole["seconds"] if whole else "not drawn"))
    return rows


def drawn(out: Path, dtype: str) -> dict[str, Any]:
    """Our row of the table of SDXL's pictures; empty unless that is done."""
    file = out / "picture_sdxl.json"
    names, *rows = json.loads(file.read_text())["rows"] if file.exists() else [()]
    return next((dict(zip(names, row, strict=True)) for row in rows if row[:2] == [dtype, "ours"]), {})


def sharing(scale: Scale, out: Path) -> Rows:
    """One call of SD 1.5's UNet that draws three frames together, with guidance, over a plain batch."""
    job = scale.job(out, "sd15")
    unet = fill(unet_without_weights(SD15), job.dtype).to(job.device)
    with torch.device("meta"):
        model = SharingModel(unet, 3, RANK, control=False)
    model, base = fill(model, job.dtype, seed=1).to(job.device), UNetNetwork(unet)
    with torch.device(job.device):
        text = Conditioning(torch.randn(6, 77, 768, dtype=job.dtype), positive=torch.arange(6) >= 3)
        noise = torch.randn(6, 4, job.size // 8, job.size // 8, dtype=job.dtype)
        given = noise, torch.full((6,), 500), text
    with torch.inference_mode():
        plain = measured(lambda: base.base(*given), job)
        with shared_attention(base, model) as shared:
            ours = measured(lambda: shared(*given), job)
    rows = (("plain batch", *plain), ("shared", *ours))
    return [("way", "seconds", "peak GB", "ratio"), *((*row, row[1] / plain[0]) for row in rows)]


def loading(scale: Scale, out: Path) -> Rows:
    """SDXL from its file (which the system holds in memory) to the device, and from one method's weights to another's.

    Seconds of a picture of one step; those of the switch alone are what it takes longer than the same method again.
    """
    job = replace(scale.job(out, "sdxl"), steps=1, rounds=1)
    checkpoint = read_checkpoint(job.folder / "sdxl.safetensors")
    began = now(job.device)
    networks = [checkpoint.network(part, job.dtype).to(job.device) for part in ("unet", "vae")]
    taken = [("UNet and VAE to the device", now(job.device) - began)]
    del networks
    fresh(job.device)
    draw = drawing(job)
    names = ("loaded, first method", "the same again", "second method", "back", "second method again", "back again")
    for name, method in zip(names, (METHODS[0], *METHODS, *METHODS, METHODS[0]), strict=True):
        began = now(job.device)
        draw(method=method)
        taken.append((name, now(job.device) - began))
    again = taken[2][1]
    switched = [(name, seconds, seconds - again) for name, seconds in taken[3:]]
    return [("what", "seconds", "over the same again"), *((*row, "") for row in taken[:3]), *switched]


def rate(scale: Scale, out: Path) -> Rows:
    """The rate of a square matmul, and what our SDXL pictures reach of it."""
    rows: Rows = [("dtype", "matmul, TFLOP/s", "our SDXL picture, TFLOP/s", "share, %")]
    for dtype in ("float16", "bfloat16", "float32"):
        peak, whole = peak_rate(getattr(torch, dtype), scale.device) / 1e12, drawn(out, dtype)
        reached = whole["TFLOP"] / whole["seconds"] if whole else None
        rows.append((dtype, peak, *((reached, 100 * reached / peak) if reached else ("not drawn", ""))))
    return rows


def tuned(measure: Callable[[Job], Rows], scale: Scale, out: Path) -> Rows:
    """A table of `_tuning`, at SDXL's size."""
    return measure(scale.job(out, "sdxl"))


def now(device: str) -> float:
    """The clock's seconds once the device has done all that it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


PARTS: dict[str, tuple[str, Callable[[Scale, Path], Rows]]] = {
    "picture_sdxl": ("A transparent picture, SDXL", partial(picture, "sdxl")),
    "picture_sd15": ("A transparent picture, SD 1.5", partial(picture, "sd15")),
    "phases": ("Phases of our picture, seconds", phases),
    "offload": ("Offload levels, SDXL", offload),
    "decode": ("RGBA decode, eight views", views),
    "sharing": ("Attention sharing, three frames of SD 1.5", sharing),
    "loading": ("Loading and switching, SDXL, one step", loading),
    "rate": ("Matmul rate reached", rate),
    "batch": ("Batches, SDXL", batch),
    **{
        f"tune_{name}": (f"What could be tuned, SDXL: {name}", partial(tuned, partial(ways, name))) for name in NETWORKS
    },
    "streamed": ("A step of SDXL from the computer's memory", partial(tuned, streamed)),
}


def main() -> int:
    """Measure what is not done yet, print all that is; 1 when a part failed, or there is no device."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder of tables and models; build/gpu, or build/gpu-rehearsal")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS])
    parser.add_argument("--minutes", type=float, default=9, help="after which no further part begins")
    parser.add_argument("--rehearse", action="store_true", help="run on the CPU, as small as can be")
    options = parser.parse_args()
    if not options.rehearse and not torch.cuda.is_available():
        print("left out: these tables need a CUDA device, and torch finds none; --rehearse runs them on the CPU")
        return 1 if sys.argv[1:] else 0  # without arguments it is one of all benchmarks
    scale = REHEARSAL if options.rehearse else Scale()
    out = (options.out or Path("build", "gpu-rehearsal" if options.rehearse else "gpu")).absolute()
    device = "CPU, a rehearsal" if options.rehearse else torch.cuda.get_device_name()
    header(f"GPU tables, {device}")
    ends = time.monotonic() + 60 * options.minutes
    mark = out / "models" / "whole"
    if not mark.exists():
        apart(written, scale, out)
        mark.touch()
    failed = False
    facts = {"device": device, "torch": version("torch"), "diffusers": version("diffusers")}
    facts |= {"sizes": dict(scale.sizes), "steps": scale.steps, "dtypes": scale.dtypes}
    for name in (name for name in options.parts if not (out / f"{name}.json").exists()):
        if time.monotonic() > ends:
            break
        title, measure = PARTS[name]
        print(f"measuring {name}", flush=True)
        try:
            rows = apart(measure, scale, out, environment=DEFAULTS)
        except (*FAILURES, LayerDiffuseError) as error:
            print(f"{name} failed: {type(error).__name__}: {error}", file=sys.stderr)
            failed = True
            continue
        (out / f"{name}.json").write_text(json.dumps({"title": title, **facts, "rows": rows}, indent=1))
    print_all(out)
    if left := [name for name in options.parts if not (out / f"{name}.json").exists()]:
        print(f"left: {', '.join(left)}; the same command goes on with them")
    return int(failed)


def print_all(out: Path) -> None:
    """The tables of all parts that are done, on the screen and as Markdown."""
    pages: list[str] = []
    for part in (json.loads(file.read_text()) for name in PARTS if (file := out / f"{name}.json").exists()):
        print(f"\n{part['title']}")
        table(part["rows"])
        names, *rows = [[text(value) for value in row] for row in part["rows"]]
        lines = [f"| {' | '.join(row)} |" for row in (names, ["---"] * len(names), *rows)]
        sizes = ", ".join(f"{family} {size}x{size}" for family, size in part["sizes"].items())
        measured_on = f"{part['device']}, torch {part['torch']}, diffusers {part['diffusers']}; "
        measured_on += f"{sizes}; {part['steps']} steps; {part['dtypes'][0]} unless named"
        pages.append("\n".join((f"## {part['title']}", "", measured_on, "", *lines, "")))
    (out / "gpu.md").write_text("\n".join(pages))


if __name__ == "__main__":
    sys.exit(main())
