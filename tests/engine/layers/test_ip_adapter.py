"""IP-Adapters: equal to diffusers' own pipelines, beside layer files, masked."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from diffusers import (
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from layerdiffuse_mcp.api.control import ReferenceSettings
from layerdiffuse_mcp.engine.device.placement import place
from layerdiffuse_mcp.engine.layers.ip_adapter import Referred
from layerdiffuse_mcp.engine.layers.weight_offset import read_offsets
from layerdiffuse_mcp.engine.models.additions import ENCODER, Addition, adapter_key
from layerdiffuse_mcp.engine.models.components import Components
from layerdiffuse_mcp.engine.models.model import model_class
from layerdiffuse_mcp.engine.models.stable_diffusion import StableDiffusion
from layerdiffuse_mcp.engine.weights.ip_adapter import read_image_encoder, read_ip_adapter
from layerdiffuse_mcp.engine.weights.reader import read_checkpoint
from layerdiffuse_mcp.families.entries import ModelFiles
from layerdiffuse_mcp.families.memory import LEVELS
from layerdiffuse_mcp.families.spec import LayerMethod
from layerdiffuse_mcp.images.alpha import Bytes
from tests.engine.layers import of_pipelines
from tests.engine.layers.of_pipelines import SD15, SDXL, SIZE, assert_close, latents_of, parts
from tests.narrow import UNETS, write_ip_adapter, write_models, write_vision

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # diffusers' scheduler and this NumPy

SIDE = 56
SETTINGS = ReferenceSettings(model="a", strength=0.8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    write_models(folder)
    write_vision(folder / "image_encoder")
    for family in ("sd15", "sdxl"):
        for kind in ("plain", "plus"):
            write_ip_adapter(folder / f"{family}-{kind}.safetensors", family, plus=kind == "plus")
    return folder


def picture() -> Bytes:
    rng = np.random.default_rng(5)
    return np.concatenate([rng.integers(0, 256, (SIDE, SIDE, 3)), np.full((SIDE, SIDE, 1), 255)], -1).astype(np.uint8)


def opened(folder: Path, family: str, kind: str) -> StableDiffusion:
    base = folder / f"tiny-{family}.safetensors"
    layers = {path.name: path for path in folder.glob("layer_*.safetensors")}
    components = Components(read_checkpoint(base), place("cpu", "float32"), ModelFiles(base=base, layers=layers))
    path = folder / f"{family}-{kind}.safetensors"
    components.use_additions(
        {
            adapter_key("a"): Addition(path, "a", "denoising", lambda path, _: read_ip_adapter(path)),
            ENCODER: Addition(folder / "image_encoder", "e", "text", lambda path, _: read_image_encoder(path)),
        }
    )
    return cast(StableDiffusion, model_class(components.checkpoint.spec)(base.stem, components))


def drawn(
    model: StableDiffusion, method: LayerMethod, stop_at: float = 1.0, mask: Bytes | None = None, referred: bool = True
) -> tuple[Tensor, Tensor]:
    """What sampling begins from, and its latents."""
    seen = Referred.of(model, SETTINGS, picture()) if referred else None
    return of_pipelines.drawn(model, method, stop_at, referred=seen, reference_mask=mask)


def of_diffusers(
    folder: Path, family: str, kind: str, state: dict[str, Tensor], start: Tensor, mask: Bytes | None = None
) -> Tensor:
    """The latents of diffusers' own pipeline, of the same networks and from the same start."""
    unet = UNet2DConditionModel(**UNETS[family])
    unet.load_state_dict(state)
    pipelines: dict[str, Any] = {"sd15": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}
    pipeline = pipelines[family](
        unet=unet,
        image_encoder=CLIPVisionModelWithProjection.from_pretrained(folder / "image_encoder"),
        feature_extractor=CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SIDE),
        **parts(family),
        **({"safety_checker": None} if family == "sd15" else {}),
    )
    pipeline.load_ip_adapter(
        str(folder), subfolder="", weight_name=f"{family}-{kind}.safetensors", low_cpu_mem_usage=False
    )
    pipeline.set_ip_adapter_scale(SETTINGS.strength)
    given: dict[str, Any] = {"ip_adapter_image": Image.fromarray(picture()[..., :3])}
    if mask is not None:
        given["cross_attention_kwargs"] = {"ip_adapter_masks": [torch.from_numpy(mask)[None, None] / 255]}
    return latents_of(pipeline, family, start, **given)


@pytest.mark.parametrize("masked", [False, True], ids=["everywhere", "masked"])
@pytest.mark.parametrize("kind", ["plain", "plus"])
@pytest.mark.parametrize("method", [SD15, SDXL], ids=["sd15", "sdxl"])
def test_without_a_layer_file_it_is_what_diffusers_pipeline_computes(
    folder: Path, method: LayerMethod, kind: str, masked: bool
):
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[:, : SIZE // 2] = 255
    chosen = mask if masked else None
    model = opened(folder, method.family, kind)
    start, latents = drawn(model, method, 0, chosen)
    assert_close(latents, of_diffusers(folder, method.family, kind, model.unet.state_dict(), start, chosen))
    assert not torch.allclose(latents, drawn(model, method, 0, referred=False)[1], atol=1e-2)


def test_with_a_layer_file_of_offsets_it_is_what_diffusers_pipeline_computes_with_the_patched_base(folder: Path):
    model = opened(folder, "sdxl", "plus")
    network = model.network()
    with network.patched(read_offsets(folder / SDXL.file, network.unet)):
        network.set_weights()
        state = {name: tensor.clone() for name, tensor in network.unet.state_dict().items()}
    start, latents = drawn(model, SDXL)
    assert_close(latents, of_diffusers(folder, "sdxl", "plus", state, start))


def test_beside_shared_attention_it_adds_to_each_frame(folder: Path):
    model = opened(folder, "sd15", "plain")
    with_it, without = drawn(model, SD15)[1], drawn(model, SD15, referred=False)[1]
    assert ((with_it - without).abs().amax(dim=(1, 2, 3)) > 1e-2).all()
    nowhere = np.zeros((SIZE, SIZE), np.uint8)
    assert_close(drawn(model, SD15, mask=nowhere)[1], without)


def test_a_drawing_that_refers_is_the_same_at_every_offload_level(folder: Path):
    _, whole = drawn(opened(folder, "sd15", "plus"), SD15)
    for level in LEVELS[1:]:
        model = opened(folder, "sd15", "plus")
        model.components.level = level
        assert torch.equal(drawn(model, SD15)[1], whole)
        assert model.components.stack(ENCODER).bytes == 0
    assert model.components.sizes.text > Components(model.components.checkpoint, model.placement).sizes.text
