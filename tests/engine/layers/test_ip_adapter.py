"""IP-Adapters: equal to diffusers' own pipelines, beside layer files, masked."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from layerdiffuse_mcp.api.choices import SAMPLERS
from layerdiffuse_mcp.api.control import ReferenceSettings
from layerdiffuse_mcp.api.requests import Stage
from layerdiffuse_mcp.engine.device.placement import place
from layerdiffuse_mcp.engine.layers.ip_adapter import Referred
from layerdiffuse_mcp.engine.layers.weight_offset import read_offsets
from layerdiffuse_mcp.engine.models.additions import ENCODER, Addition, adapter_key
from layerdiffuse_mcp.engine.models.components import Components
from layerdiffuse_mcp.engine.models.model import model_class
from layerdiffuse_mcp.engine.models.offload import Level
from layerdiffuse_mcp.engine.models.stable_diffusion import StableDiffusion
from layerdiffuse_mcp.engine.pipeline.denoise import denoise
from layerdiffuse_mcp.engine.pipeline.latents import Start
from layerdiffuse_mcp.engine.pipeline.prompts import Prompts
from layerdiffuse_mcp.engine.sampling.noise import BatchNoise
from layerdiffuse_mcp.engine.sampling.schedules import plan
from layerdiffuse_mcp.engine.sampling.tiles import Tiles
from layerdiffuse_mcp.engine.text.clip_embeddings import sdxl_vector
from layerdiffuse_mcp.engine.types import Conditioning, Timed
from layerdiffuse_mcp.engine.weights.ip_adapter import read_image_encoder, read_ip_adapter
from layerdiffuse_mcp.engine.weights.reader import read_checkpoint
from layerdiffuse_mcp.families.entries import ModelFiles
from layerdiffuse_mcp.families.registry import METHODS
from layerdiffuse_mcp.families.spec import LayerMethod
from layerdiffuse_mcp.images.alpha import Bytes
from tests.narrow import UNETS, write_ip_adapter, write_models, write_vision

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # diffusers' scheduler and this NumPy

SIZE, STEPS, GUIDANCE, SIDE, SIZES = 64, 4, 5.0, 56, 6 * 256
SD15, SDXL = METHODS["layer_sd15_joint"], METHODS["layer_xl_transparent_attn"]
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


def texts(family: str) -> tuple[Conditioning, Conditioning]:
    torch.manual_seed(3)
    width, vector = UNETS[family]["cross_attention_dim"], UNETS[family].get("projection_class_embeddings_input_dim")

    def made() -> Conditioning:
        whole = None if vector is None else sdxl_vector(torch.randn(1, vector - SIZES), SIZE, SIZE)
        return Conditioning(torch.randn(1, 7, width), whole)

    return made(), made()


def drawn(
    model: StableDiffusion, method: LayerMethod, stop_at: float = 1.0, mask: Bytes | None = None, referred: bool = True
) -> tuple[Tensor, Tensor]:
    """What sampling begins from, and its latents, by Euler steps."""
    seen = Referred.of(model, SETTINGS, picture()) if referred else None
    positive, negative = texts(model.spec.id)
    stage = Stage(
        method=method.id, sampler="Euler", schedule="Uniform", steps=STEPS, guidance_scale=GUIDANCE, stop_at=stop_at
    )
    levels = plan(SAMPLERS["Euler"], "Uniform", STEPS, model.sigmas)
    seeds, shape = [*range(7, 7 + method.frames)], model.latent.shape(SIZE, SIZE)
    latents = denoise(
        stage,
        method,
        model,
        Prompts((Timed(((0, positive),)),), Timed(((0, negative),))),
        None,
        Start(BatchNoise(seeds, shape, "cpu"), levels),
        Tiles.of((SIZE, SIZE), None),
        (),
        SIZE * SIZE * method.frames,
        lambda *_: None,
        lambda: None,
        (),
        seen,
        mask,
    )
    return levels.start(BatchNoise(seeds, shape, "cpu").initial()), latents


def of_diffusers(
    folder: Path, family: str, kind: str, state: dict[str, Tensor], start: Tensor, mask: Bytes | None = None
) -> Tensor:
    """The latents of diffusers' own pipeline, of the same networks and from the same start."""
    unet = UNet2DConditionModel(**UNETS[family])
    unet.load_state_dict(state)
    positive, negative = texts(family)
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="linspace",
        steps_offset=1,  # which a pipeline asks for and this spacing does not heed
    )
    scheduler.set_timesteps(STEPS)
    absent: dict[str, Any] = dict.fromkeys(("text_encoder", "tokenizer"))
    given: dict[str, Any] = {"prompt_embeds": positive.context, "negative_prompt_embeds": negative.context}
    pipelines: Any = StableDiffusionPipeline
    if family == "sdxl":
        pipelines = StableDiffusionXLPipeline
        absent |= dict.fromkeys(("text_encoder_2", "tokenizer_2"))
        given["pooled_prompt_embeds"] = cast(Tensor, positive.vector)[:, :-SIZES]
        given["negative_pooled_prompt_embeds"] = cast(Tensor, negative.vector)[:, :-SIZES]
    else:
        absent |= {"safety_checker": None}
    pipeline = pipelines(
        vae=AutoencoderKL(
            block_out_channels=(32,) * 4,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
        ),
        unet=unet,
        scheduler=scheduler,
        image_encoder=CLIPVisionModelWithProjection.from_pretrained(folder / "image_encoder"),
        feature_extractor=CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SIDE),
        **absent,
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_ip_adapter(
        str(folder), subfolder="", weight_name=f"{family}-{kind}.safetensors", low_cpu_mem_usage=False
    )
    pipeline.set_ip_adapter_scale(SETTINGS.strength)
    if mask is not None:
        given["cross_attention_kwargs"] = {"ip_adapter_masks": [torch.from_numpy(mask)[None, None] / 255]}
    return pipeline(
        ip_adapter_image=Image.fromarray(picture()[..., :3]),
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        latents=start / scheduler.init_noise_sigma,
        num_images_per_prompt=len(start),
        output_type="latent",
        width=SIZE,
        height=SIZE,
        **given,
    ).images


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    """Sampling begins at 14.6 times unit noise, in float32."""
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=5e-4)


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


@pytest.mark.parametrize("level", ["in_turn", "layers"])
def test_a_drawing_that_refers_is_the_same_at_every_offload_level(folder: Path, level: Level):
    whole, model = (opened(folder, "sd15", "plus") for _ in range(2))
    model.components.level = level
    assert torch.equal(drawn(model, SD15)[1], drawn(whole, SD15)[1])
    assert model.components.stack(ENCODER).bytes == 0
    assert model.components.sizes.text > Components(model.components.checkpoint, model.placement).sizes.text
