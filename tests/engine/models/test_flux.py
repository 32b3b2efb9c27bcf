"""FLUX.1-dev's pipeline in our engine, with random weights: equal to diffusers' own, with the layer file merged."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers import FluxImg2ImgPipeline, FluxPipeline
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from layerdiffuse_mcp.api.outcome import Outcome
from layerdiffuse_mcp.api.requests import GenerateRequest, validated
from layerdiffuse_mcp.engine.sampling.noise import BatchNoise
from layerdiffuse_mcp.engine.transparency.decode import decode, to_rgba8
from layerdiffuse_mcp.engine.transparency.encode import transparent_latent
from layerdiffuse_mcp.engine.transparency.networks import TransparentDecoder
from layerdiffuse_mcp.engine.weights.reader import read_checkpoint
from layerdiffuse_mcp.errors import CheckpointError, InvalidRequest, LayerFileError, ModelError
from layerdiffuse_mcp.families.flux import CODEC, TRANSPARENT
from layerdiffuse_mcp.hub.catalog import find
from layerdiffuse_mcp.images.read import read_picture
from layerdiffuse_mcp.settings import Settings
from tests.flux_base import CHANNELS, codec, layer_tensors, pickled, pipeline, write
from tests.hub.files import FLUX_KEYS, tensors
from tests.saving import Engine

NAME, SIDE, STEPS = "flux-small", 64, 3
SHAPE = (1, CHANNELS, SIDE // 8, SIDE // 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flux")
    write(folder / "models")
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "given.png")
    return folder


def engine_of(folder: Path, **settings: Any) -> Engine:
    common = {"output_dir": folder / "out", "models_dir": folder / "models", "device": "cpu"}
    return Engine(Settings(**common | settings))


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    engine = engine_of(folder)
    yield engine
    engine.close()


def request(**fields: Any) -> GenerateRequest:
    wanted = {"model": NAME, "prompt": "a red apple", "width": SIDE, "height": SIDE, "fit": "as_is", "seed": 7}
    return validated(GenerateRequest, {**wanted, "steps": STEPS, "save_latent": True, **fields})


def merged(weight: float) -> FluxPipeline:
    """diffusers' own pipeline, whose transformer has W + weight * B @ A."""
    made = pipeline()
    made.set_progress_bar_config(disable=True)
    layer = layer_tensors()
    for key in layer:
        if key.endswith(".lora_A.weight"):
            name = key.removeprefix("transformer.").removesuffix(".lora_A.weight")
            change = layer[key.replace("lora_A", "lora_B")] @ layer[key]
            made.transformer.get_submodule(name).weight.data += weight * change
    return made


def unpacked(made: Any, latents: Tensor) -> Tensor:
    return made._unpack_latents(latents, SIDE, SIDE, 8)[0]


def latent_of(outcome: Outcome) -> Tensor:
    [data] = [file.data for file in outcome.encoded if file.picture is None]
    return safetensors.torch.load(data)["latent"]


def pixels_of(outcome: Outcome, folder: Path) -> np.ndarray:
    [file] = [file for file in outcome.encoded if file.picture is not None]
    (folder / "seen.png").write_bytes(file.data)
    return read_picture(folder / "seen.png").rgba


@pytest.mark.parametrize("weight", [0.0, 1.0, 0.5])
def test_a_picture_is_that_of_diffusers_with_the_layer_file_merged(engine: Engine, folder: Path, weight: float):
    drawn = engine.drawn(request(layer_weight=weight))
    own = merged(weight)
    noise = BatchNoise([7], SHAPE[1:], "nvidia").initial()
    packed = own._pack_latents(noise, *SHAPE)
    latent = unpacked(own, own("a red apple", latents=packed, num_inference_steps=STEPS, height=SIDE, width=SIDE,
                               guidance_scale=3.5, output_type="latent", return_dict=False)[0])  # fmt: skip
    assert torch.allclose(latent_of(drawn), latent, atol=1e-4)
    unscaled = latent[None] / 0.3611 + 0.1159
    with torch.no_grad():
        seen = own.vae.decode(unscaled, return_dict=False)[0] / 2 + 0.5
    assert seen.min() < 0 or seen.max() > 1  # which is not clipped
    assert np.abs(pixels_of(drawn, folder) - to_rgba8(decode(codec()[0], seen, unscaled))[0].astype(int)).max() <= 1


def test_the_weight_of_the_layer_file_changes_the_picture(engine: Engine):
    first, second = (latent_of(engine.drawn(request(layer_weight=weight))) for weight in (1.0, 0.5))
    assert (first - second).abs().max() > 0.1


@pytest.mark.parametrize("strength", [0.4, 0.7, 1.0])
def test_a_redrawn_picture_is_that_of_diffusers(engine: Engine, folder: Path, strength: float):
    fields = {"image": folder / "given.png", "strength": strength, "steps": 5, "noise_source": "cpu"}
    drawn = latent_of(engine.drawn(request(**fields)))
    own = merged(1.0)
    given = transparent_latent(own.vae, codec()[1], read_picture(folder / "given.png").rgba)
    redraw = FluxImg2ImgPipeline(**{name: part for name, part in own.components.items() if part is not None})
    redraw.set_progress_bar_config(disable=True)
    latents = redraw(
        "a red apple", image=(given - 0.1159) * 0.3611, strength=strength, num_inference_steps=5, height=SIDE,
        width=SIDE, guidance_scale=3.5, generator=torch.Generator().manual_seed(7), output_type="latent",
        return_dict=False,
    )[0]  # fmt: skip
    assert torch.allclose(drawn, unpacked(own, latents), atol=1e-4)


def test_results_of_a_batch_are_those_drawn_alone(engine: Engine):
    together = [file.data for file in engine.drawn(request(count=2)).encoded if file.picture is None]
    alone = latent_of(engine.drawn(request(seed=8)))
    assert torch.allclose(safetensors.torch.load(together[1])["latent"], alone, atol=1e-4)


def test_a_size_between_patches_is_drawn_larger_and_cut(engine: Engine, folder: Path):
    drawn = engine.drawn(request(width=72, height=88))
    assert pixels_of(drawn, folder).shape == (88, 72, 4)
    assert latent_of(drawn).shape == (CHANNELS, 12, 10)


@pytest.mark.parametrize("level", ["in_turn", "layers"])
def test_a_picture_is_the_same_at_every_offload_level(engine: Engine, folder: Path, level: str):
    offloading = engine_of(folder, offload=level)
    assert torch.equal(latent_of(offloading.drawn(request())), latent_of(engine.drawn(request())))
    offloading.close()


def test_only_the_networks_of_one_phase_are_on_the_device(folder: Path):
    engine = engine_of(folder, offload="in_turn")
    engine.drawn(request())
    components = engine._manager.get(find(NAME, engine._settings), lambda _: None).components
    spec = components.checkpoint.spec
    owners = {id(part): name for name in spec.names() for part in components.stack(name).module.modules()}
    seen: dict[str, tuple[str, ...]] = {}

    def look(module: nn.Module, _inputs: Any) -> None:
        if (name := owners.get(id(module))) and not list(module.children()):
            seen[name] = tuple(other for other in spec.names() if components.stack(other).bytes)

    hook = register_module_forward_pre_hook(look)
    try:
        engine.drawn(request())
    finally:
        hook.remove()
        engine.close()
    texts = spec.names("text")
    assert seen == {"transformer": ("transformer",), "vae": ("vae",), **dict.fromkeys(texts, texts)}


def test_a_weight_of_two_names_is_there_once(engine: Engine):
    engine.drawn(request())
    stack = engine._manager.get(find(NAME, engine._settings), lambda _: None).components.stack("text_encoder_2")
    assert stack.module.shared.weight is stack.module.encoder.embed_tokens.weight
    assert stack.bytes == sum(weight.numel() * 4 for weight in pipeline().text_encoder_2.parameters())


def test_an_option_that_does_not_act_is_refused(engine: Engine):
    for option in ({"negative_prompt": "a pear"}, {"sampler": "Euler a"}, {"stop_at": 0.5}, {"speed": "draft"}):
        with pytest.raises(InvalidRequest, match=f"{next(iter(option))} would change nothing: FLUX.1-dev models"):
            engine.drawn(request(**option))
    with pytest.raises(InvalidRequest, match="prompt has 513 tokens; at most 512 are allowed"):
        engine.drawn(request(prompt="cup " * 513))
    with pytest.raises(InvalidRequest, match="take no LoRAs"):
        engine.drawn(request(prompt="an apple <lora:ink:1>"))


@pytest.fixture
def own(folder: Path, tmp_path: Path) -> Iterator[tuple[Engine, Path]]:
    """An engine with a models folder that may be changed."""
    shutil.copytree(folder / "models", tmp_path / "models")
    engine = engine_of(tmp_path)
    yield engine, tmp_path / "models"
    engine.close()


def test_a_layer_file_for_another_base_is_refused(own: tuple[Engine, Path]):
    engine, models = own
    wide = {key: torch.cat([one, one], 1) if "lora_A" in key else one for key, one in layer_tensors().items()}
    save_file(wide, models / TRANSPARENT.file)
    with pytest.raises(LayerFileError, match=r"layerlora .* does not fit this base: .* found no place"):
        engine.drawn(request())


def test_a_decoder_of_another_familys_latents_is_refused(own: tuple[Engine, Path]):
    engine, models = own
    save_file(TransparentDecoder((8, 8, 8, 8, 16, 16, 16)).state_dict(), models / CODEC.decoder)
    with pytest.raises(LayerFileError, match="latents of 4 channels, and those of flux-small have 16"):
        engine.drawn(request())


def test_the_published_pickle_in_the_decoders_place_is_refused_with_what_to_do(own: tuple[Engine, Path]):
    engine, models = own
    (models / CODEC.decoder).write_bytes(pickled())
    with pytest.raises(ModelError, match=r"is a pickle file under another name.*`layerdiffuse-mcp models convert"):
        engine.drawn(request())


@pytest.mark.parametrize(
    ("changed", "says"),
    [({"guidance_embeds": False}, "takes no guidance"), ({"in_channels": 128}, "for filling and control")],
)
def test_a_flux_of_another_kind_is_refused(own: tuple[Engine, Path], changed: dict[str, Any], says: str):
    config = own[1] / NAME / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changed))
    with pytest.raises(CheckpointError, match=says):
        read_checkpoint(own[1] / NAME)


def test_a_base_in_one_file_is_refused_with_what_to_use(tmp_path: Path):
    (tmp_path / "flux1-dev.safetensors").write_bytes(tensors(FLUX_KEYS))
    with pytest.raises(CheckpointError, match=r"is a Flux model in one file.*use the diffusers folder of a FLUX.1-dev"):
        read_checkpoint(tmp_path / "flux1-dev.safetensors")
