"""Memory of several clients that work with one model: each server with a worker of its own, and all with one.

    python benchmarks/clients.py [--clients 2]

Each client starts `layerdiffuse-mcp` on stdio and has it load a full-size SD 1.5 base of random weights (float16 on
disk, float32 in memory) with the transparency networks. Memory is that of all servers and workers in bytes of their
own, what several share being divided among them (PSS); seconds are those of each client's call.
"""

import argparse
import os
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import psutil
import torch
from _full_size import SD15, fill, too_little_memory, unet_without_weights
from _report import header, table
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from mcp import Client, StdioServerParameters
from safetensors.torch import save_file

from layerdiffuse_mcp.engine.text.clip import TextConfig, TextEncoder
from layerdiffuse_mcp.engine.transparency.networks import OffsetEncoder, TransparentDecoder
from layerdiffuse_mcp.engine.weights.ldm_export import save_single_file
from layerdiffuse_mcp.families.registry import FAMILIES, METHODS

GIGABYTES = 6
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
TEXT = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "vocab_size": 49408,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
}


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=2)
    options = parser.parse_args()
    header(f"{options.clients} clients on stdio, one full-size SD 1.5 base, float32 on the CPU")
    if too_little_memory(GIGABYTES * (options.clients + 1)):
        return
    calls = [f"call {number + 1}, s" for number in range(options.clients)]
    rows: list[tuple[object, ...]] = [("workers", "processes", "GB", *calls)]
    with tempfile.TemporaryDirectory() as folder:
        write_models(Path(folder) / "models")
        for name, sharing in (("one a server", "off"), ("shared", "on")):
            rows.append((name, *anyio.run(measure, Path(folder), sharing, options.clients)))
    table(rows)


def write_models(folder: Path) -> None:
    """A base called `full-size` and what drawing with it needs."""
    folder.mkdir()
    half, spec = torch.float16, FAMILIES["sd15"]
    with torch.device("meta"):
        vae, text = AutoencoderKL(**VAE), TextEncoder(TextConfig(**TEXT), projected=False)
        codec = OffsetEncoder(), TransparentDecoder()
    unet, vae, text = fill(unet_without_weights(SD15), half), fill(vae, half), fill(text, half)
    save_single_file(folder / "full-size.safetensors", spec, unet, vae, [text])
    assert spec.codec is not None
    for name, network in zip((spec.codec.encoder, spec.codec.decoder), codec, strict=True):
        save_file(fill(network, half).state_dict(), folder / name)
    for method in METHODS.values():
        if method.family == spec.id:  # loading asks whether it is there, drawing would read it
            save_file({"unread": torch.zeros(1)}, folder / method.file)


async def measure(folder: Path, sharing: str, clients: int) -> tuple[object, ...]:
    """Processes, bytes, and seconds of each client's call."""
    settings = {"share_workers": sharing, "models_dir": folder / "models", "output_dir": folder, "device": "cpu"}
    environment = {f"LAYERDIFFUSE_{name.upper()}": str(value) for name, value in settings.items()}
    environment |= {name: os.environ[name] for name in ("PATH", "HOME", "OMP_NUM_THREADS") if name in os.environ}
    environment["XDG_STATE_HOME"] = str(folder / sharing)
    server = StdioServerParameters(command=sys.executable, args=["-m", "layerdiffuse_mcp"], env=environment)
    seconds: list[float] = []
    async with AsyncExitStack() as stack:
        for _ in range(clients):
            client = await stack.enter_async_context(Client(server))
            began = time.perf_counter()
            result = await client.call_tool("prepare_model", {"model": "full-size", "wait_seconds": 600})
            if result.is_error:
                raise SystemExit(f"the model could not be loaded: {result.content}")
            seconds.append(time.perf_counter() - began)
        everything = psutil.process_iter(["cmdline"])
        apart = [one for one in everything if str(folder / sharing) in " ".join(one.info["cmdline"] or ())]
        measured = [*psutil.Process().children(recursive=True), *apart]
        memory = sum(process.memory_full_info().pss for process in measured)
    for process in apart:
        process.kill()
    return len(measured), memory / 1e9, *seconds


if __name__ == "__main__":
    main()
