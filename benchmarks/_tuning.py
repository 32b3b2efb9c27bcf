"""What might draw faster on a GPU, or in less memory: one way at a time, for the last tables of `gpu.py`.

None of these ways is in the product: what a table shows to pay may come in, as an option where it costs something. Each
has a process of its own, in which the full-size network is first measured as the product runs it, then the same network
in that way, on the same input. A way that this device, torch or network does not have says why.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from _report import apart, median_of
from picture import Job, measured
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from layerdiffuse_mcp.engine.device.placement import Placement
from layerdiffuse_mcp.engine.models.components import Components
from layerdiffuse_mcp.engine.models.offload import BLOCK
from layerdiffuse_mcp.engine.transparency.decode import VIEWS
from layerdiffuse_mcp.engine.transparency.networks import TransparentDecoder
from layerdiffuse_mcp.engine.weights.reader import read_checkpoint

Call = Callable[[], Tensor]
Way = Callable[[Any, Call], Call]
"""From a network and a call of it that computes as ever to a call that computes the same in another way."""


def channels_last(network: Any, call: Call) -> Call:
    """With convolutions' weights, hence their results, in the order that tensor cores read."""
    network.to(memory_format=torch.channels_last)
    return call


def tried_out(_: nn.Module, call: Call) -> Call:
    """cuDNN times its algorithms for each shape at first, and keeps the fastest."""
    torch.backends.cudnn.benchmark = True
    return call


def both(network: nn.Module, call: Call) -> Call:
    """`channels_last` and `tried_out`."""
    return tried_out(network, channels_last(network, call))


def attention(backend: SDPBackend, _: nn.Module, call: Call) -> Call:
    """Every attention by this implementation alone."""

    def attended() -> Tensor:
        with sdpa_kernel(backend):
            return call()

    return attended


def fused(network: Any, call: Call) -> Call:
    """Query, key and value by one product."""
    network.fuse_qkv_projections()
    return call


def graph(_: nn.Module, call: Call) -> Call:
    """All kernels of a call recorded once, and started as one."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()  # what is made at the first call is not recorded
    torch.cuda.current_stream().wait_stream(side)
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded):
        output = call()

    def replayed() -> Tensor:
        recorded.replay()
        return output

    return replayed


def blocks_compiled(network: Any, call: Call) -> Call:
    """The transformer blocks compiled, one code for those that are alike."""
    network.compile_repeated_blocks()
    return call


def compiled(network: nn.Module, call: Call) -> Call:
    """All of the network compiled."""
    network.compile()
    return call


def narrow_weights(network: Any, call: Call) -> Call:
    """Weights of eight bits, widened as they are needed."""
    network.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=network.dtype)
    return call


def in_parts(count: int, network: Any, call: Call) -> Call:
    """So many rows of the batch at a time."""
    whole = network.forward

    def forward(*given: Tensor) -> Tensor:
        return torch.cat([whole(*part) for part in zip(*(one.split(count) for one in given), strict=True)])

    network.forward = forward
    return call


def denoiser(job: Job) -> tuple[nn.Module, Call]:
    """A step of SDXL's UNet with guidance: one picture, two rows."""
    unet = read_checkpoint(job.folder / "sdxl.safetensors").network("unet", job.dtype).to(job.device)
    return unet, _step(unet, job)


def _step(unet: nn.Module, job: Job) -> Call:
    with torch.device(job.device):
        noise = torch.randn(2, 4, job.size // 8, job.size // 8, dtype=job.dtype)
        text, vector = torch.randn(2, 77, 2048, dtype=job.dtype), torch.randn(2, 2816, dtype=job.dtype)
        time = torch.full((2,), 500)
    given: dict[str, Any] = {"encoder_hidden_states": text, "added_cond_kwargs": {"vector": vector}}
    return lambda: unet(noise, time, **given, return_dict=False)[0]


def autoencoder(job: Job) -> tuple[nn.Module, Call]:
    """The VAE's decoder on a picture."""
    vae = read_checkpoint(job.folder / "sdxl.safetensors").network("vae", job.dtype).to(job.device)
    latent = torch.randn(1, 4, job.size // 8, job.size // 8, dtype=job.dtype, device=job.device)
    return vae.decoder, lambda: vae.decoder(latent)


def views(job: Job) -> tuple[nn.Module, Call]:
    """The transparent decoder on eight views as one batch."""
    decoder = TransparentDecoder().eval().to(job.device, job.dtype)
    with torch.device(job.device):
        pixel = torch.rand(len(VIEWS), 3, job.size, job.size, dtype=job.dtype)
        latent = torch.randn(len(VIEWS), 4, job.size // 8, job.size // 8, dtype=job.dtype)
    pixel = pixel.contiguous(memory_format=torch.channels_last)  # as `decode` gives it
    return decoder, lambda: decoder(pixel, latent)


EVERYWHERE: dict[str, Way] = {
    "channels last": channels_last,
    "cuDNN benchmark": tried_out,
    "both of these": both,
    "CUDA graph": graph,
    "compiled": compiled,
}
NETWORKS: dict[str, tuple[Callable[[Job], tuple[nn.Module, Call]], dict[str, Way]]] = {
    "denoiser": (
        denoiser,
        {
            "transformer blocks compiled": blocks_compiled,
            "flash attention": partial(attention, SDPBackend.FLASH_ATTENTION),
            "memory-efficient attention": partial(attention, SDPBackend.EFFICIENT_ATTENTION),
            "cuDNN's attention": partial(attention, SDPBackend.CUDNN_ATTENTION),
            "fused projections": fused,
            "float8 weights": narrow_weights,
        },
    ),
    "VAE": (autoencoder, {}),
    "views": (views, {f"{count} at a time": partial(in_parts, count) for count in (4, 2, 1)}),
}
FAILURES = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, ImportError, OSError)
"""What torch, its compiler or the driver says of a way that it does not have."""
COLUMNS = ("way", "speed", "seconds", "first call", "peak GB", "usual GB", "off, %", "why not")


def ways(network: str, job: Job) -> list[Sequence[Any]]:
    """Each way on a network, beside the usual one. `off`: by how much of its deviation the result differs."""
    return [COLUMNS, *((way, *apart(_beside, network, way, job)) for way in EVERYWHERE | NETWORKS[network][1])]


@torch.inference_mode()
def _beside(network: str, way: str, job: Job) -> Sequence[Any]:
    torch.manual_seed(0)
    make, only = NETWORKS[network]
    module, usual = make(job)
    seconds, peak = measured(usual, job)
    result = usual().float()
    try:
        call = (EVERYWHERE | only)[way](module, usual)
        first = median_of(1, call)
        now, now_peak = measured(call, job)
        off = (call().float() - result).std() / result.std()
    except FAILURES as error:
        return *[""] * 6, f"{type(error).__name__}: {str(error).strip()[:100]}".partition("\n")[0]
    return seconds / now, now, first, now_peak, peak, 100 * off.item(), ""


class Prefetched:
    """A network's blocks in pinned memory, each brought to the device while the one before it is computed.

    What order they are computed in shows at the first call, in which each is waited for.
    """

    def __init__(self, network: nn.Module, device: torch.device):
        self._device, self._stream = device, torch.cuda.Stream() if device.type == "cuda" else None
        self._weights: dict[str, list[nn.Parameter]] = {}
        for name, weight in network.named_parameters():
            if block := BLOCK.match(name):
                self._weights.setdefault(block[1], []).append(weight)
            else:
                weight.data = weight.data.to(device)
        self._there = {
            block: [self._pinned(weight.data) for weight in weights] for block, weights in self._weights.items()
        }
        self._order: list[str] = []
        self._coming = ""
        for block in self._weights:
            network.get_submodule(block).register_forward_pre_hook(partial(self._before, block))
            network.get_submodule(block).register_forward_hook(partial(self._after, block))

    def _pinned(self, weight: Tensor) -> Tensor:
        return weight.pin_memory() if self._stream else weight

    def _fetch(self, block: str) -> None:
        with torch.cuda.stream(self._stream):
            for weight, there in zip(self._weights[block], self._there[block], strict=True):
                weight.data = there.to(self._device, non_blocking=True)
        self._coming = block

    def _before(self, block: str, *_: Any) -> None:
        if self._coming != block:
            self._fetch(block)
        if self._stream:
            computing = torch.cuda.current_stream()
            computing.wait_stream(self._stream)
            for weight in self._weights[block]:
                weight.data.record_stream(computing)
        if block not in self._order:
            self._order.append(block)
        elif (following := self._order[(self._order.index(block) + 1) % len(self._order)]) != block:
            self._fetch(following)

    def _after(self, block: str, *_: Any) -> None:
        for weight, there in zip(self._weights[block], self._there[block], strict=True):
            weight.data = there


def streamed(job: Job) -> list[Sequence[Any]]:
    """A step of the denoiser with its weights in the computer's memory.

    Our block comes from the file, which the system holds in memory, when it is needed.
    """
    rows: list[Sequence[Any]] = [("on the device", "seconds", "peak GB", "result")]
    ways = {"all": _whole, "a block (level layers)": _a_block, "a block from pinned memory, and the next": _prefetched}
    results = {title: apart(_streamed, way, job) for title, way in ways.items()}
    whole = results["all"][-1]
    return rows + [
        (title, *row, "equal" if (got == whole).all() else "DIFFERS") for title, (*row, got) in results.items()
    ]


@torch.inference_mode()
def _streamed(make: Callable[[Job], nn.Module], job: Job) -> Sequence[Any]:
    unet = make(job)
    torch.manual_seed(0)
    call = _step(unet, job)
    return *measured(call, job), call().float().cpu().numpy()


def _whole(job: Job) -> nn.Module:
    return denoiser(job)[0]


def _a_block(job: Job) -> nn.Module:
    checkpoint = read_checkpoint(job.folder / "sdxl.safetensors")
    components = Components(checkpoint, Placement(torch.device(job.device), job.dtype))
    components.level = "layers"
    return components.network("unet")


def _prefetched(job: Job) -> nn.Module:
    unet = read_checkpoint(job.folder / "sdxl.safetensors").network("unet", job.dtype)
    Prefetched(unet, torch.device(job.device))
    return unet
