"""Adapters on one denoiser: together they do what each does by itself, in their order, and leave nothing behind."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from safetensors.torch import save_file
from torch import Tensor

from layerdiffuse_mcp.engine.device.placement import Placement
from layerdiffuse_mcp.engine.layers.adapters import ADAPTERS
from layerdiffuse_mcp.engine.layers.attention_sharing import shared_attention
from layerdiffuse_mcp.engine.layers.attention_sharing_file import SharingModel, attention_places
from layerdiffuse_mcp.engine.layers.weight_offset import read_offsets
from layerdiffuse_mcp.engine.models.attention_hooks import Attend, AttentionCall, AttentionHook
from layerdiffuse_mcp.engine.models.components import Components
from layerdiffuse_mcp.engine.models.networks import Networks, UNetNetwork
from layerdiffuse_mcp.engine.models.stable_diffusion import StableDiffusion15
from layerdiffuse_mcp.engine.types import Conditioning
from layerdiffuse_mcp.engine.weights.networks import VectorUNet
from layerdiffuse_mcp.engine.weights.patcher import PatchStack
from layerdiffuse_mcp.errors import LayerFileError, ModelNotFound
from layerdiffuse_mcp.families.entries import ModelFiles
from layerdiffuse_mcp.families.spec import LayerMethod
from tests.engine.narrow_bases import conditioning, copy_of, read_base, same
from tests.narrow import networks

OFFSET, OTHER, SHARING, ABSENT, DAMAGED = (
    LayerMethod(name, "sd15", name, adapter=adapter)
    for name, adapter in {
        "offset": "weight_offset",
        "other": "weight_offset",
        "sharing": "attention_sharing",
        "absent": "attention_sharing",
        "damaged": "attention_sharing",
    }.items()
)
FRAMES = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Layer files that fit the narrow SD 1.5 base, with effects that show."""
    folder = tmp_path_factory.mktemp("layers")
    unet = networks("sd15")[0]
    torch.manual_seed(1)
    for method in (OFFSET, OTHER):  # all weights, so also those that attention sharing reads
        save_file(
            {key: torch.randn_like(weight) * 0.02 for key, weight in unet.state_dict().items()}, folder / method.file
        )
    sharing = SharingModel(unet, FRAMES, 3, control=False)
    for parameter in sharing.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    save_file(sharing.state_dict(), folder / SHARING.file)
    save_file({"hookers.layers.0.temporal_i.weight": torch.zeros(8, 8)}, folder / DAMAGED.file)
    return folder


@pytest.fixture
def model(folder: Path, tmp_path: Path) -> Iterator[StableDiffusion15]:
    """A base with these layer files, which is what it was afterwards."""
    checkpoint = read_base(tmp_path, "sd15")
    files = ModelFiles(base=checkpoint.path, layers={path.name: path for path in folder.iterdir()})
    model = StableDiffusion15("narrow", Components(checkpoint, Placement(torch.device("cpu"), torch.float32), files))
    before, processors = copy_of(model.unet), dict(model.unet.attn_processors)
    yield model
    given = batch()
    assert torch.equal(model.network()(*given), plain(model.unet, *given))
    assert same(model.unet, before)
    assert model.unet.attn_processors == processors


def batch() -> tuple[Tensor, Tensor, Conditioning]:
    """Two results of two frames: the first in the unconditional pass, the second in the conditional one."""
    torch.manual_seed(9)
    text = conditioning(2 * FRAMES, "sd15", [False, False, True, True])
    return torch.randn(2 * FRAMES, 4, 8, 8), torch.tensor([500]).expand(2 * FRAMES), text


def plain(unet: torch.nn.Module, x: Tensor, t: Tensor, text: Conditioning) -> Tensor:
    return unet(x, t, text.context).sample


def alike(first: Tensor, second: Tensor) -> bool:
    """Equal but for rounding: a kernel may depend on where weights lie, which is a mapped file or memory."""
    return torch.allclose(first, second, atol=1e-5)


def layered(model: StableDiffusion15, *methods: LayerMethod, strength: float = 0.5) -> Tensor:
    """What the denoiser computes with the methods on it, one on top of the other; the base is asked in between."""
    given = batch()
    with ExitStack() as stack:
        unet = model.network()
        on = Networks.of(unet)
        for method in methods:
            on = stack.enter_context(ADAPTERS[method.adapter].applied(model, on, method, strength))
        output = on.layered(*given)
        assert alike(on.base(*given), plain(networks("sd15")[0], *given))
        assert torch.equal(on.layered(*given), output)
    return output


def by_hand(folder: Path, *offsets: LayerMethod, shared: bool = False) -> Tensor:
    """The same with the offsets written into a base's weights, on which nothing but attention sharing is done."""
    unet = networks("sd15")[0].requires_grad_(False)
    PatchStack(unet).set(*(read_offsets(folder / method.file, unet).scaled(0.5) for method in offsets))
    if not shared:
        return plain(unet, *batch())
    with shared_attention(UNetNetwork(unet), SharingModel.read(folder / SHARING.file, unet)) as network:
        return network(*batch())


@pytest.mark.parametrize("order", [(OFFSET, SHARING), (SHARING, OFFSET)], ids=["offset first", "sharing first"])
def test_an_offset_and_attention_sharing_give_what_they_give_by_hand(
    model: StableDiffusion15, folder: Path, order: tuple[LayerMethod, ...]
) -> None:
    both = layered(model, *order)
    assert alike(both, by_hand(folder, OFFSET, shared=True))
    for alone in (by_hand(folder, OFFSET), by_hand(folder, shared=True)):
        assert not torch.allclose(both, alone, atol=1e-3)


def test_two_offsets_are_both_added_in_their_order(model: StableDiffusion15, folder: Path) -> None:
    assert alike(layered(model, OFFSET, OTHER), by_hand(folder, OFFSET, OTHER))
    assert alike(layered(model, OTHER, OFFSET), by_hand(folder, OTHER, OFFSET))


def test_an_adapter_alone_is_what_it_was_before_another_came_and_went(model: StableDiffusion15, folder: Path) -> None:
    given, unet = batch(), model.network()
    with ADAPTERS[SHARING.adapter].applied(model, Networks.of(unet), SHARING, 1.0) as first:
        with ADAPTERS[OFFSET.adapter].applied(model, first, OFFSET, 0.5) as second:
            assert alike(second.layered(*given), by_hand(folder, OFFSET, shared=True))
        assert alike(first.layered(*given), by_hand(folder, shared=True))


@pytest.mark.parametrize(("second", "error"), [(ABSENT, ModelNotFound), (DAMAGED, LayerFileError)])
@pytest.mark.parametrize("first", [OFFSET, SHARING], ids=lambda method: method.id)
def test_an_error_of_the_second_adapter_leaves_none_on(
    model: StableDiffusion15, first: LayerMethod, second: LayerMethod, error: type[Exception]
) -> None:
    with pytest.raises(error):
        layered(model, first, second)


# hooks by themselves


def louder(call: AttentionCall, attend: Attend) -> Tensor:
    return 1.5 * attend(call)


def prompted(call: AttentionCall, attend: Attend) -> Tensor:
    """Adds to the rows of the conditional pass, as a picture prompt does."""
    return attend(call) + 0.5 * conditional(call.conditioning)


def conditional(text: Conditioning) -> Tensor:
    assert text.positive is not None
    return text.positive[:, None, None].float()


class ByHand(AttnProcessor2_0):
    """The base's attention, changed."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.change = change

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.change(super().__call__(*args, **kwargs))


@pytest.fixture
def unet() -> VectorUNet:
    return networks("sd15")[0]


def cross_attention(unet: VectorUNet) -> list[str]:
    return [place.name for place in attention_places(unet) if place.name.endswith("attn2")]


ORDERS: dict[tuple[AttentionHook, ...], Callable[[Tensor, Tensor], Tensor]] = {
    (louder,): lambda output, more: 1.5 * output,
    (prompted,): lambda output, more: output + more,
    (louder, prompted): lambda output, more: 1.5 * output + more,
    (prompted, louder): lambda output, more: 1.5 * (output + more),
}


@pytest.mark.parametrize("hooks", ORDERS, ids=lambda hooks: " then ".join(hook.__name__ for hook in hooks))
def test_hooks_act_in_their_order_on_the_layers_that_they_name(
    unet: VectorUNet, hooks: tuple[AttentionHook, ...]
) -> None:
    given, changed = batch(), networks("sd15")[0]
    more = 0.5 * conditional(given[2])
    for name in cross_attention(changed):
        attention = cast(Attention, changed.get_submodule(name))
        attention.set_processor(ByHand(lambda output: ORDERS[hooks](output, more)))
    network = UNetNetwork(unet)
    with ExitStack() as stack:
        for hook in hooks:
            stack.enter_context(network.hooked(dict.fromkeys(cross_attention(unet), hook)))
        assert torch.equal(network(*given), plain(changed, *given))
        assert torch.equal(network.base(*given), plain(unet, *given))
    assert torch.equal(network(*given), plain(unet, *given))


def test_a_hook_on_top_of_attention_sharing_knows_the_rows_of_each_pass(unet: VectorUNet, folder: Path) -> None:
    given, network = batch(), UNetNetwork(unet)
    with shared_attention(network, SharingModel.read(folder / SHARING.file, unet)) as shared:
        without = shared(*given)
        with network.hooked(dict.fromkeys(cross_attention(unet), prompted)):
            prompted_too = shared(*given)
    unconditional = given[2].positive == torch.tensor(False)
    assert torch.equal(prompted_too[unconditional], without[unconditional])
    assert all(not torch.allclose(*both, atol=1e-3) for both in zip(prompted_too[2:], without[2:], strict=True))


def test_a_hook_that_fails_leaves_the_base_as_it_was(unet: VectorUNet) -> None:
    def failing(call: AttentionCall, attend: Attend) -> Tensor:
        attend(call)
        raise MemoryError

    processors, network = dict(unet.attn_processors), UNetNetwork(unet)
    layer = cross_attention(unet)[0]
    with network.hooked({layer: louder}), network.hooked({layer: failing}):
        with pytest.raises(MemoryError):
            network(*batch())
        assert unet.attn_processors == processors


def test_a_hook_of_a_layer_that_is_not_there_puts_none_on(unet: VectorUNet) -> None:
    processors, network = dict(unet.attn_processors), UNetNetwork(unet)
    hooks = {cross_attention(unet)[0]: louder, "mid_block.absent": louder}
    with network.hooked(hooks), pytest.raises(AttributeError, match="absent"):
        network(*batch())
    assert unet.attn_processors == processors
