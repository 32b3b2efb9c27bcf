"""ControlNets: loaded from every layout, equal to diffusers' own pipelines, and beside every layer method."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLControlNetPipeline,
    UNet2DConditionModel,
)
from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint
from safetensors.torch import load_file, save_file
from torch import Tensor

from layerdiffuse_mcp.api.control import ControlSettings
from layerdiffuse_mcp.engine.device.cancellation import asking
from layerdiffuse_mcp.engine.device.placement import place
from layerdiffuse_mcp.engine.layers.attention_sharing import shared_attention
from layerdiffuse_mcp.engine.layers.attention_sharing_file import SharingModel
from layerdiffuse_mcp.engine.layers.controlnet import Control, Followed
from layerdiffuse_mcp.engine.layers.weight_offset import read_offsets
from layerdiffuse_mcp.engine.models.additions import Addition, control_key
from layerdiffuse_mcp.engine.models.components import Components
from layerdiffuse_mcp.engine.models.model import model_class
from layerdiffuse_mcp.engine.models.networks import UNetNetwork
from layerdiffuse_mcp.engine.models.stable_diffusion import StableDiffusion
from layerdiffuse_mcp.engine.types import Conditioning
from layerdiffuse_mcp.engine.weights.controlnet import read_controlnet
from layerdiffuse_mcp.engine.weights.ldm_names import controlnet_key_map
from layerdiffuse_mcp.engine.weights.reader import read_checkpoint
from layerdiffuse_mcp.engine.weights.tensor_file import TensorFile
from layerdiffuse_mcp.errors import Cancelled, LayerFileError
from layerdiffuse_mcp.families.entries import ModelFiles
from layerdiffuse_mcp.families.memory import LEVELS
from layerdiffuse_mcp.families.spec import LayerMethod
from layerdiffuse_mcp.hub.identify import identify
from layerdiffuse_mcp.images.alpha import Bytes
from tests.engine.layers import of_pipelines
from tests.engine.layers.of_pipelines import SD15, SDXL, SIZE, assert_close, latents_of, parts
from tests.narrow import UNETS, write_control, write_models

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # diffusers' scheduler and this NumPy

FAMILIES = ("sd15", "sdxl")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("controls")
    write_models(folder)
    for family in FAMILIES:
        write_control(folder / "controlnet" / f"{family}_canny.safetensors", family, seed=1)
        write_control(folder / "controlnet" / f"{family}_depth", family, seed=2)
    return folder


def picture() -> Bytes:
    rng = np.random.default_rng(5)
    return np.concatenate([rng.integers(0, 256, (SIZE, SIZE, 3)), np.full((SIZE, SIZE, 1), 255)], -1).astype(np.uint8)


def added(path: Path, name: str) -> Addition:
    return Addition(path, name, "denoising", read_controlnet)


def opened(folder: Path, family: str, controls: tuple[str, ...] = ("canny",)) -> StableDiffusion:
    base = folder / f"tiny-{family}.safetensors"
    layers = {path.name: path for path in folder.glob("layer_*.safetensors")}
    components = Components(read_checkpoint(base), place("cpu", "float32"), ModelFiles(base=base, layers=layers))
    paths = {"canny": f"{family}_canny.safetensors", "depth": f"{family}_depth"}
    components.use_additions({control_key(name): added(folder / "controlnet" / paths[name], name) for name in controls})
    return cast(StableDiffusion, model_class(components.checkpoint.spec)(base.stem, components))


def drawn(
    model: StableDiffusion, controls: list[ControlSettings], method: LayerMethod, stop_at: float = 1.0
) -> tuple[Tensor, Tensor]:
    """What sampling begins from, and its latents."""
    return of_pipelines.drawn(model, method, stop_at, followed=[Followed.of(one, picture()) for one in controls])


def of_diffusers(folder: Path, family: str, unet: Any, controls: list[ControlSettings], start: Tensor) -> Tensor:
    """The latents of diffusers' own pipeline, of the same networks and from the same start."""
    plain = UNet2DConditionModel(**UNETS[family])
    nets = [ControlNetModel.from_unet(plain, conditioning_embedding_out_channels=(4, 8, 8, 16)) for _ in controls]
    for net, one in zip(nets, controls, strict=True):
        path = folder / "controlnet" / f"{family}_{one.model}"
        files = [path / "diffusion_pytorch_model.safetensors", path.with_suffix(".safetensors")]
        net.load_state_dict(load_file(next(file for file in files if file.is_file())))
    kinds: dict[str, Any] = {"sd15": StableDiffusionControlNetPipeline, "sdxl": StableDiffusionXLControlNetPipeline}
    pipeline = kinds[family](
        unet=unet,
        controlnet=nets if len(nets) > 1 else nets[0],
        **parts(family),
        **(dict.fromkeys(("safety_checker", "feature_extractor")) if family == "sd15" else {}),
    )
    maps = [torch.from_numpy(picture()[..., :3].copy()).permute(2, 0, 1)[None] / 255 for _ in controls]
    several = len(controls) > 1
    return latents_of(
        pipeline,
        family,
        start,
        image=maps if several else maps[0],
        controlnet_conditioning_scale=[one.strength for one in controls] if several else controls[0].strength,
        control_guidance_start=[one.start for one in controls],
        control_guidance_end=[one.end for one in controls],
    )


def plain_unet(family: str, state: dict[str, Tensor]) -> UNet2DConditionModel:
    unet = UNet2DConditionModel(**UNETS[family])
    unet.load_state_dict(state)
    return unet.eval()


CANNY = ControlSettings(model="canny", strength=0.8, end=0.75)
DEPTH = ControlSettings(model="depth", strength=0.5, start=0.25)


@pytest.mark.parametrize("controls", [[CANNY], [CANNY, DEPTH]], ids=["one", "two"])
@pytest.mark.parametrize("method", [SD15, SDXL], ids=["sd15", "sdxl"])
def test_without_a_layer_file_it_is_what_diffusers_pipeline_computes(
    folder: Path, method: LayerMethod, controls: list[ControlSettings]
):
    model = opened(folder, method.family, tuple(one.model for one in controls))
    unet = plain_unet(method.family, model.unet.state_dict())
    start, latents = drawn(model, controls, method, stop_at=0)
    assert_close(latents, of_diffusers(folder, method.family, unet, controls, start))
    assert not torch.allclose(latents, drawn(model, [], method, stop_at=0)[1], atol=1e-2)


def test_with_a_layer_file_of_offsets_it_is_what_diffusers_pipeline_computes_with_the_patched_base(folder: Path):
    model = opened(folder, "sdxl")
    network = model.network()
    with network.patched(read_offsets(folder / SDXL.file, network.unet)):
        network.set_weights()
        unet = plain_unet("sdxl", network.unet.state_dict())
    start, latents = drawn(model, [CANNY], SDXL)
    assert_close(latents, of_diffusers(folder, "sdxl", unet, [CANNY], start))


class SharedUNet:
    """A UNet with a sharing model on it, as a pipeline of diffusers asks it."""

    def __init__(self, unet: UNet2DConditionModel, layer: SharingModel) -> None:
        self.config, self.dtype = unet.config, unet.dtype
        self._network, self._layer = UNetNetwork(unet), layer

    def __call__(
        self,
        x: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        down_block_additional_residuals: list[Tensor],
        mid_block_additional_residual: Tensor,
        **_: Any,
    ) -> tuple[Tensor]:
        residuals = *down_block_additional_residuals, mid_block_additional_residual
        conditioning = Conditioning(encoder_hidden_states, residuals=residuals)
        with shared_attention(self._network, self._layer) as shared:
            return (shared(x, timestep.expand(len(x)), conditioning),)


def test_with_shared_attention_each_frame_gets_what_diffusers_pipeline_adds(folder: Path):
    model = opened(folder, "sd15")
    unet = plain_unet("sd15", model.unet.state_dict())
    shared: Any = SharedUNet(unet, SharingModel.read(folder / SD15.file, unet))
    start, latents = drawn(model, [CANNY], SD15)
    assert_close(latents, of_diffusers(folder, "sd15", shared, [CANNY], start))


def test_only_the_frames_that_are_named_are_controlled(folder: Path):
    model = opened(folder, "sd15")
    x, timestep = torch.randn(6, 4, 8, 8), torch.full((6,), 500)
    conditioning = Conditioning(torch.randn(6, 7, UNETS["sd15"]["cross_attention_dim"]))
    followed = Followed.of(CANNY, picture())
    every = Control(model.control("canny"), followed, (True, True, True)).residuals(x, timestep, conditioning)
    some = Control(model.control("canny"), followed, (True, False, True)).residuals(x, timestep, conditioning)
    for one, other in zip(every, some, strict=True):
        assert_close(other[[0, 2, 3, 5]], one[[0, 2, 3, 5]])
        assert not other[[1, 4]].any()


def test_a_tile_sees_its_part_of_the_picture(folder: Path):
    model = opened(folder, "sd15")
    whole = np.concatenate([picture(), picture()[::-1]], axis=1)
    x, timestep = torch.randn(2, 4, 8, 8), torch.full((2,), 500)
    texts = Conditioning(torch.randn(2, 7, UNETS["sd15"]["cross_attention_dim"]))
    box = (48, 0, 48 + SIZE, SIZE)
    tile = Control(model.control("canny"), Followed.of(CANNY, whole), (True,))
    alone = Control(model.control("canny"), Followed.of(CANNY, whole[:, 48 : 48 + SIZE]), (True,))
    pairs = zip(tile.residuals(x, timestep, replace(texts, box=box)), alone.residuals(x, timestep, texts), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_files_in_the_names_of_its_authors_are_read_as_diffusers_converts_them(folder: Path, tmp_path: Path):
    state = load_file(folder / "controlnet" / "sd15_canny.safetensors")
    unet = opened(folder, "sd15", ()).unet.config
    state |= {  # as many convolutions as theirs have
        f"controlnet_cond_embedding.blocks.{n}.{kind}": torch.randn(*shape)
        for n in range(6)
        for kind, shape in (("weight", (4, 4, 3, 3)), ("bias", (4,)))
    }
    state["controlnet_cond_embedding.conv_out.weight"] = torch.randn(32, 4, 3, 3)
    names = controlnet_key_map(unet)
    theirs = {f"control_model.{ldm}": state[name] for ldm, name in names.items() if name in state}
    assert len(theirs) == len(state)
    save_file(theirs, tmp_path / "control.safetensors")
    assert identify(TensorFile(tmp_path / "control.safetensors").shapes).adapts == "sd15"
    part = read_controlnet(tmp_path / "control.safetensors", unet)
    network = part.build(None, "cpu", "control")
    converted = convert_controlnet_checkpoint(dict(theirs), {"layers_per_block": 2, **unet})
    assert {name: tensor.shape for name, tensor in network.state_dict().items()} == {
        name: tensor.shape for name, tensor in converted.items()
    }
    assert all(torch.equal(tensor, converted[name]) for name, tensor in network.state_dict().items())


def test_a_controlled_drawing_is_the_same_at_every_offload_level(folder: Path):
    _, whole = drawn(opened(folder, "sd15", ("canny", "depth")), [CANNY, DEPTH], SD15)
    for level in LEVELS[1:]:
        model = opened(folder, "sd15", ("canny", "depth"))
        model.components.level = level
        assert torch.equal(drawn(model, [CANNY, DEPTH], SD15)[1], whole)
        control = model.components.stack("the ControlNet canny")
        model.components.onload("pictures")
        assert control.bytes == 0


def test_their_weights_are_counted_and_let_go_with_the_last_that_names_them(folder: Path):
    components = opened(folder, "sdxl", ()).components
    before, bytes_before = components.sizes, components.bytes
    path = folder / "controlnet" / "sdxl_canny.safetensors"
    components.use_additions({"canny": added(path, "canny")})
    components.onload("denoising")
    weights = sum(tensor.numel() for tensor in load_file(path).values()) * 4
    assert components.sizes.denoiser - before.denoiser == weights
    assert components.bytes - bytes_before >= weights
    pixels = SIZE * SIZE
    assert components.sizes.drawing(pixels, pixels).denoising > before.drawing(pixels, pixels).denoising
    components.use_additions({})
    assert components.sizes == before


def test_one_of_another_family_is_refused(folder: Path):
    model = opened(folder, "sd15", ())
    other = added(folder / "controlnet" / "sdxl_canny.safetensors", "canny")
    model.components.use_additions({control_key("canny"): other})
    with pytest.raises(LayerFileError, match="the ControlNet canny does not fit tiny-sd15"):
        model.control("canny")


def test_one_that_is_cancelled_stops_in_its_own_blocks(folder: Path):
    model = opened(folder, "sd15")
    seen: list[int] = []
    control = model.control("canny")
    hook = control.down_blocks[0].register_forward_pre_hook(lambda *_: seen.append(1))
    try:
        with asking(lambda: bool(seen)), pytest.raises(Cancelled):
            drawn(model, [CANNY], SD15)
    finally:
        hook.remove()
    assert len(seen) == 1
