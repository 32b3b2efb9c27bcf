"""A whole transparent picture on full-size networks: ours beside diffusers' own pipeline, in the same run.

    python benchmarks/picture.py [--family sdxl] [--size 1024] [--steps 20] [--dtype float16] [--rounds 3]

The bases are single files with random weights, so nothing can be seen in the pictures. "Plain" is diffusers' pipeline
from prompt embeddings, whose networks stay in memory, then the transparent decoder on eight views one after another
and `torch.median`, and the PNG; the layer file is left out there. "Ours" is the engine with the layer file on. Each
has a process of its own, ours with what `runtime` sets, and draws a picture before the clock runs. "Floor" is the work
of the denoiser, the VAE's decoder and the eight views over the measured peak of a matmul. Where there is a GPU it is
used, at the family's own size and 20 steps; on a CPU a small SD 1.5 picture of few steps has to do.
"""

import argparse
import gc
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _engine import Engine
from _full_size import SD15, random_tensors, sdxl, too_little_memory, unet_without_weights, write
from _report import apart, header, median_of, peak_memory, reset_peak_memory, table
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from safetensors.torch import save_file
from switching import RANK, attention
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from layerdiffuse_mcp.api.outcome import Outcome, Progress
from layerdiffuse_mcp.api.requests import GenerateRequest
from layerdiffuse_mcp.engine.layers.attention_sharing_file import SharingModel
from layerdiffuse_mcp.engine.startup import DEFAULTS
from layerdiffuse_mcp.engine.text.clip import TextConfig, TextEncoder
from layerdiffuse_mcp.engine.transparency.decode import VIEWS, to_rgba8
from layerdiffuse_mcp.engine.transparency.networks import OffsetEncoder, TransparentDecoder
from layerdiffuse_mcp.engine.weights.checkpoint import Checkpoint
from layerdiffuse_mcp.engine.weights.ldm_export import single_file
from layerdiffuse_mcp.engine.weights.reader import read_checkpoint
from layerdiffuse_mcp.families.registry import FAMILIES
from layerdiffuse_mcp.settings import Settings

BASES: dict[str, tuple[dict[str, Any], tuple[dict[str, Any], ...]]] = {
    "sd15": ({**SD15}, ({"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},)),
    "sdxl": (
        sdxl(),
        (
            {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
            {
                "hidden_size": 1280,
                "intermediate_size": 5120,
                "num_hidden_layers": 32,
                "num_attention_heads": 20,
                "projection_dim": 1280,
                "hidden_act": "gelu",
            },
        ),
    ),
}
LAYERS: dict[str, str] = {"sd15": "layer_sd15_transparent_attn", "sdxl": "layer_xl_transparent_attn"}
GIGABYTES: dict[str, int] = {"sd15": 12, "sdxl": 24}  # in float32
PROMPT, GUIDANCE = "a red apple", 7.0


def write_files(folder: Path, family: str) -> None:
    """A base, its layer file and its transparency files, all random, under the names that the engine looks for."""
    config, texts = BASES[family]
    unet = unet_without_weights(config)
    with torch.device("meta"):
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
        )
        encoders = [TextEncoder(TextConfig(**text), projected=number == 1) for number, text in enumerate(texts)]
        tensors = single_file(FAMILIES[family], unet, vae, encoders)
    write(folder / f"{family}.safetensors", {key: tuple(tensor.shape) for key, tensor in tensors.items()})
    layer = folder / f"{LAYERS[family]}.safetensors"
    if family == "sd15":
        with torch.device("meta"):
            state = SharingModel(unet, 1, RANK, control=False).state_dict()
        write(layer, {key: tuple(tensor.shape) for key, tensor in state.items()}, gain=0.05)
    else:
        low_rank: dict[str, tuple[int, ...]] = {}
        for key, tensor in tensors.items():
            if attention(key) and key.startswith("model."):
                name = key.removeprefix("model.")
                low_rank |= {f"{name}::lora::0": (tensor.shape[0], RANK), f"{name}::lora::1": (RANK, tensor.shape[1])}
        write(layer, low_rank, gain=0.05)
    for kind, network in (("encoder", OffsetEncoder()), ("decoder", TransparentDecoder())):
        shapes = ((name, tuple(tensor.shape)) for name, tensor in network.state_dict().items())
        save_file(random_tensors(shapes, torch.float16, gain=0.3), folder / getattr(FAMILIES[family].codec, kind))


class Plain:
    """diffusers' pipeline and the plain eight-fold decode."""

    def __init__(self, checkpoint: Checkpoint, family: str, dtype: torch.dtype, device: str) -> None:
        networks = checkpoint.network("unet", dtype).to(device), checkpoint.network("vae", dtype).to(device)
        networks[0].__class__ = UNet2DConditionModel  # which joins pooled text and size by itself
        config = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
        scheduler = DPMSolverMultistepScheduler(**config, use_karras_sigmas=True)
        given: dict[str, Any] = {"unet": networks[0], "vae": networks[1], "scheduler": scheduler}
        given |= {"text_encoder": None, "tokenizer": None}
        if family == "sdxl":
            self.pipeline: Any = StableDiffusionXLPipeline(**given, text_encoder_2=None, tokenizer_2=None)
        else:
            given |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
            self.pipeline = StableDiffusionPipeline(**given)
        self.pipeline.set_progress_bar_config(disable=True)
        width = networks[0].config["cross_attention_dim"]
        texts = ["prompt_embeds", "negative_prompt_embeds"]
        self.texts = {name: torch.randn(1, 77, width).to(device, dtype) for name in texts}
        if family == "sdxl":
            pooled = ["pooled_prompt_embeds", "negative_pooled_prompt_embeds"]
            self.texts |= {name: torch.randn(1, 1280).to(device, dtype) for name in pooled}
        self.decoder = TransparentDecoder().to(device, dtype).eval()

    @torch.inference_mode()
    def __call__(self, size: int, steps: int, path: Path) -> None:
        drawn: Tensor = self.pipeline(
            **self.texts,
            height=size,
            width=size,
            num_inference_steps=steps,
            guidance_scale=GUIDANCE,
            output_type="latent",
        ).images
        vae = self.pipeline.vae
        pixel = vae.decode(drawn / vae.config.scaling_factor, return_dict=False)[0] / 2 + 0.5
        views: list[Tensor] = []
        for mirrored, turns in VIEWS:
            turned = [torch.rot90(part.flip(3) if mirrored else part, turns, (2, 3)) for part in (pixel, drawn)]
            seen = self.decoder(*turned).clamp(0, 1).rot90(-turns, (2, 3))
            views.append(seen.flip(3) if mirrored else seen)
        rgba = torch.stack(views).median(dim=0).values[0]
        Image.fromarray(to_rgba8(rgba)).save(path)


def work(plain: Plain, size: int, steps: int, path: Path) -> float:
    """Operations of a picture: denoiser on two rows a step, the VAE's decoder, eight views."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        plain(size, 1, path)
    whole = counter.get_total_flops()
    return whole + (steps - 1) * sum(counter.get_flop_counts()["UNet2DConditionModel"].values())


def peak_rate(dtype: torch.dtype, device: str) -> float:
    """Operations a second of a matmul."""
    side = 4096 if device == "cuda" else 1024
    square = torch.rand(side, side, dtype=dtype, device=device)
    return 2 * side**3 / min(_seconds(lambda: square @ square, device) for _ in range(9))


def _seconds(call: Callable[[], object], device: str) -> float:
    began = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def memory(device: str) -> float:
    """Gigabytes at the peak since the last call of `fresh`."""
    return (torch.cuda.max_memory_allocated() if device == "cuda" else peak_memory()) / 1e9


def fresh(device: str) -> None:
    """Let the peak begin anew."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    reset_peak_memory()


def main() -> None:
    """Measure and print a table for each family."""
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", choices=[*BASES], nargs="+", default=["sd15", "sdxl"] if gpu else ["sd15"])
    parser.add_argument("--size", type=int, help="side; the family's own on a GPU, 128 on a CPU")
    parser.add_argument("--steps", type=int, default=20 if gpu else 4)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float16" if gpu else "float32")
    parser.add_argument("--rounds", type=int, default=3 if gpu else 1)
    options = parser.parse_args()
    device, dtype = "cuda" if gpu else "cpu", getattr(torch, options.dtype)
    named = f" on {torch.cuda.get_device_name()}" if gpu else ""
    for family in options.family:
        size = options.size or ({"sd15": 512, "sdxl": 1024}[family] if gpu else 128)
        header(f"A transparent picture, {family} {size}x{size}, {options.steps} steps, {options.dtype}{named}")
        if too_little_memory(GIGABYTES[family] * dtype.itemsize / 4):
            continue
        with tempfile.TemporaryDirectory() as folder:
            write_files(Path(folder), family)
            job = Job(Path(folder), family, size, options.steps, options.rounds, dtype, device)
            operations, *plain = apart(drawn_plainly, job)
            ours = apart(drawn_by_us, job, environment=DEFAULTS)
        rows = [("plain", *plain), ("ours", *ours)]
        table([("way", "seconds", "speed", "peak GB"), *((way, took, plain[0] / took, top) for way, took, top in rows)])
        print(f"floor: {operations / 1e12:.2f} TFLOP, {operations / peak_rate(dtype, device):.3g} s\n")


@dataclass(frozen=True)
class Job:
    """What is drawn, of the files in which folder, how often."""

    folder: Path
    family: str
    size: int
    steps: int
    rounds: int
    dtype: torch.dtype
    device: str


def drawn_plainly(job: Job) -> tuple[float, float, float]:
    """A picture's operations, its seconds, and gigabytes at the peak."""
    plain = Plain(read_checkpoint(job.folder / f"{job.family}.safetensors"), job.family, job.dtype, job.device)
    path = job.folder / "plain.png"
    operations = work(plain, job.size, job.steps, path)
    return operations, *measured(lambda: plain(job.size, job.steps, path), job)


def drawn_by_us(job: Job) -> tuple[float, float]:
    """Seconds and gigabytes at the peak."""
    return measured(drawing(job), job)


def drawing(job: Job, **settings: Any) -> Callable[..., Outcome]:
    """What draws the job's picture on our side; it takes where to report, and fields of the request that differ."""
    dtype = str(job.dtype).removeprefix("torch.")
    given = {"models_dir": job.folder, "output_dir": job.folder, "dtype": dtype, "device": job.device}
    engine = Engine(Settings(**given, **settings))
    usual: dict[str, Any] = {"prompt": PROMPT, "seed": 1, "model": job.family, "fit": "as_is", "steps": job.steps}
    usual |= {"width": job.size, "height": job.size, "guidance_scale": GUIDANCE}

    def draw(report: Callable[[Progress], None] = lambda _: None, **other: Any) -> Outcome:
        return engine.run(GenerateRequest(**usual | other), report)

    return draw


def measured(call: Callable[[], object], job: Job) -> tuple[float, float]:
    """The median of the seconds and the peak of the memory, after a first picture."""
    call()
    fresh(job.device)
    return median_of(job.rounds, lambda: _seconds(call, job.device)), memory(job.device)


if __name__ == "__main__":
    main()
