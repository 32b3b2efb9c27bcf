"""Attention sharing: what each frame sees, what a run computes once, and that the base never changes."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from layerdiffuse_mcp.engine.layers.attention_sharing import SharedLayer, shared_attention
from layerdiffuse_mcp.engine.layers.attention_sharing_file import (
    PROJECTIONS,
    SharedAttention,
    SharingModel,
    attention_places,
)
from layerdiffuse_mcp.engine.models.networks import UNetNetwork
from layerdiffuse_mcp.engine.types import Conditioning
from layerdiffuse_mcp.errors import InvalidRequest, LayerFileError
from tests.engine.narrow_bases import conditioning, copy_of, same
from tests.narrow import TEXT_WIDTH, networks

STEP = torch.tensor([500])


@pytest.fixture(scope="module")
def unet():
    return networks("sd15")[0].requires_grad_(False)


@pytest.fixture(autouse=True)
def _untouched(unet):
    before, processors = copy_of(unet), dict(unet.attn_processors)
    yield
    assert same(unet, before)
    assert unet.attn_processors == processors


def model_for(unet, frames, control=False, rank=3):
    """A model with effects that show; the control encoder is an eighth as wide as the released files'."""
    torch.manual_seed(frames)
    model = SharingModel(unet, frames, rank, control, control_width=32).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            gain = 2.0 if "control" in name or "encoder" in name else 0.7
            torch.nn.init.normal_(parameter, std=gain / parameter[0].numel() ** 0.5)
    return model


def batch(rows, positive=None):
    torch.manual_seed(9)
    return torch.randn(rows, 4, 8, 8), STEP.expand(rows), conditioning(rows, "sd15", positive)


def take(given, rows):
    x, t, text = given
    return (
        x[rows],
        t[rows],
        Conditioning(text.context[rows], positive=None if text.positive is None else text.positive[rows]),
    )


def plain(unet, x, t, given):
    return unet(x, t, given.context).sample


# files


@pytest.mark.parametrize(("frames", "control"), [(1, False), (3, False), (2, True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_file_tells_its_frames_rank_and_control(unet, tmp_path, frames, control, dtype):
    made = model_for(unet, frames, control, rank=5).to(dtype)
    save_file(made.state_dict(), tmp_path / "layer.safetensors")
    read = SharingModel.read(tmp_path / "layer.safetensors", unet)
    assert (read.frames, read.has_control, read.layers[0].temporal_i.weight.dtype) == (frames, control, unet.dtype)
    assert same(read, copy_of(made.to(unet.dtype)))


def test_the_layers_are_numbered_as_in_the_released_files():
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    with torch.device("meta"):
        places = attention_places(UNet2DConditionModel(cross_attention_dim=768))
    names = [place.name.replace(".transformer_blocks.0", "") for place in places]
    assert len(names) == 32
    assert names[:3] == [f"down_blocks.0.attentions.{n}" for n in ("0.attn1", "0.attn2", "1.attn1")]
    assert names[12:14] == ["up_blocks.1.attentions.0.attn1", "up_blocks.1.attentions.0.attn2"]
    assert names[29:] == [
        "up_blocks.3.attentions.2.attn2",
        "mid_block.attentions.0.attn1",
        "mid_block.attentions.0.attn2",
    ]
    assert [places[i].level for i in (0, 4, 8, 12, 18, 24, 30)] == [0, 1, 2, 2, 1, 0, 3]


def _refused(tensors, unet, match):
    with pytest.raises(LayerFileError, match=match):
        SharingModel.from_tensors(tensors, unet, "given.safetensors")


def test_what_does_not_fit_is_named(unet):
    state = model_for(unet, 2, control=True).state_dict()
    lacking = {key: t for key, t in state.items() if key != "hookers.layers.3.temporal_q.bias"}
    _refused(lacking, unet, r"an SD 1.5 layer file.*lacks hookers\.layers\.3\.temporal_q\.bias")
    _refused(state | {"hookers.layers.99.x": torch.ones(1)}, unet, r"no place.*hookers\.layers\.99\.x")
    _refused(
        state | {"hookers.layers.0.temporal_i.weight": torch.ones(3, 3)}, unet, r"does not fit.*0\.temporal_i\.weight"
    )
    half = {key: t for key, t in state.items() if not key.startswith("kwargs_encoder.blocks_1")}
    _refused(half, unet, r"lacks kwargs_encoder\.blocks_1\.0\.weight")


def test_up_to_five_keys_are_named(unet):
    state = model_for(unet, 1).state_dict()
    _refused(state | {f"extra.{i}": torch.ones(1) for i in range(9)}, unet, r"extra\.4 and 4 more")


def test_files_of_another_family_or_kind_say_so(unet):
    _refused(
        {"diffusion_model.out.2.bias::diff::0": torch.ones(4)},
        unet,
        r"is an SDXL layer file \(offsets\), not an SD 1.5",
    )
    _refused(model_for(unet, 1).state_dict(), networks("sdxl")[0], "this base is SDXL")


def test_damaged_files_are_named(unet, tmp_path):
    path = tmp_path / "layer.safetensors"
    state = model_for(unet, 1).state_dict()
    bias = "hookers.layers.0.temporal_i.bias"
    save_file(state | {bias: torch.full_like(state[bias], torch.nan)}, path)
    with pytest.raises(LayerFileError, match=r"not numbers .*hookers\.layers\.0\.temporal_i\.bias"):
        SharingModel.read(path, unet)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(LayerFileError, match="cut short"):
        SharingModel.read(path, unet)
    torch.save(state, path)
    with pytest.raises(LayerFileError, match="pickle"):
        SharingModel.read(path, unet)


# what it computes


def test_the_base_network_is_the_untouched_base(unet):
    given, base = batch(2), UNetNetwork(unet)
    with shared_attention(base, model_for(unet, 2)) as run:
        layered = run(*given)
        assert torch.equal(base.base(*given), plain(unet, *given))
        assert torch.equal(run(*given), layered)
    assert not torch.allclose(layered, plain(unet, *given), atol=1e-3)


def test_a_model_whose_additions_are_zero_is_the_base(unet):
    model = model_for(unet, 3)
    for name, parameter in model.named_parameters():
        if ".up." in name or "temporal_o" in name:
            torch.nn.init.zeros_(parameter)
    given = batch(3)
    with shared_attention(UNetNetwork(unet), model) as run:
        assert torch.allclose(run(*given), plain(unet, *given), atol=1e-5)


def test_frames_see_each_other_and_images_do_not(unet):
    given = batch(4)  # two images of two frames
    changed = (given[0].clone(), *given[1:])
    changed[0][3] += 1
    with shared_attention(UNetNetwork(unet), model_for(unet, 2)) as run:
        before, after = run(*given), run(*changed)
        alone = run(*take(given, slice(0, 2)))
    assert torch.allclose(before[:2], after[:2], atol=1e-5)
    assert not torch.allclose(before[2], after[2], atol=1e-3)
    assert torch.allclose(before[:2], alone, atol=1e-5)


def test_a_frames_prompt_replaces_the_text_of_its_conditional_rows_only(unet):
    given = batch(4, positive=[False, False, True, True])  # one image of two frames, both passes
    prompt = torch.randn(1, 5, TEXT_WIDTH)
    model = model_for(unet, 2)
    with shared_attention(UNetNetwork(unet), model) as run:
        ours = run(*given[:2], replace(given[2], frames=(None, prompt)))
    replaced = given[2].context.clone()
    replaced[3] = prompt[0]
    with shared_attention(UNetNetwork(unet), model) as run:
        assert torch.allclose(ours, run(*given[:2], Conditioning(replaced)), atol=1e-5)
        assert not torch.allclose(ours[2:], run(*given)[2:], atol=1e-3)


def test_a_longer_prompt_of_a_frame_is_joined_by_repeating(unet):
    given = batch(2, positive=[True, True])
    prompt = torch.randn(1, 10, TEXT_WIDTH)
    model = model_for(unet, 2)
    with shared_attention(UNetNetwork(unet), model) as run:
        ours = run(*given[:2], replace(given[2], frames=(prompt,)))
    both = torch.stack([prompt[0], given[2].context[1].repeat(2, 1)])
    with shared_attention(UNetNetwork(unet), model) as run:
        assert torch.allclose(ours, run(*given[:2], Conditioning(both)), atol=1e-5)


def test_the_control_picture_steers_and_may_be_another_for_each_image(unet):
    model, pictures = model_for(unet, 2, control=True), torch.rand(2, 3, 64, 64)
    given = batch(4)
    with shared_attention(UNetNetwork(unet), model, control=pictures) as run:
        together = run(*given)
    with shared_attention(UNetNetwork(unet), model, control=pictures[1:]) as run:
        second = run(*take(given, slice(2, 4)))
    with shared_attention(UNetNetwork(unet), model, control=pictures[:1]) as run:
        other = run(*take(given, slice(2, 4)))
    assert torch.allclose(together[2:], second, atol=1e-5)
    assert not torch.allclose(second, other, atol=1e-4)


def test_latents_need_be_neither_square_nor_multiples_of_eight(unet):
    model = model_for(unet, 2, control=True)
    with shared_attention(UNetNetwork(unet), model, control=torch.rand(1, 3, 7 * 8, 12 * 8)) as run:
        x = torch.randn(2, 4, 7, 12)
        assert run(x, STEP.expand(2), conditioning(2, "sd15")).shape == x.shape


def test_weights_are_merged_and_the_control_picture_is_looked_at_once_a_run(unet, monkeypatch):
    calls = []
    merged = SharedAttention.merged
    monkeypatch.setattr(SharedAttention, "merged", lambda *given: calls.append(given[1]) or merged(*given))
    model, looks, given = model_for(unet, 2, control=True), [], batch(2)
    model.kwargs_encoder.register_forward_hook(lambda *_: looks.append(1))
    with shared_attention(UNetNetwork(unet), model, control=torch.rand(1, 3, 64, 64)) as run:
        for _ in range(3):
            run(*given)
    assert len(calls) == 4 * len(attention_places(unet))
    assert len(looks) == 1


def test_passes_with_other_texts_in_between_do_not_mix_them_up(unet):
    given = batch(2)
    other = (*given[:2], Conditioning(given[2].context.flip(1) * 2))
    with shared_attention(UNetNetwork(unet), model_for(unet, 2)) as run:
        first, second = run(*given), run(*other)
        assert torch.equal(run(*given), first)
        assert torch.equal(run(*other), second)
        changed = (*given[:2], Conditioning(given[2].context, positive=torch.tensor([True, False])))
        assert torch.equal(run(*changed), first)
    assert not torch.allclose(first, second, atol=1e-3)


@pytest.mark.parametrize("frames", [1, 3])
def test_frames_attend_to_each_other_as_the_files_networks_say(unet, frames):
    layer = model_for(unet, frames).layers[0]
    torch.nn.init.normal_(layer.temporal_n.weight)
    torch.nn.init.normal_(layer.temporal_n.bias)
    width = layer.temporal_i.in_features
    shown = torch.randn(frames, 5, width, generator=torch.Generator().manual_seed(1))
    hook = SharedLayer(layer)
    hook.prepare({name: torch.zeros(frames, width, width) for name in PROJECTIONS})

    states = layer.temporal_i(layer.temporal_n(shown))
    query, key, value = (
        linear(states).unflatten(-1, (4, -1)).permute(1, 2, 0, 3)  # (places, heads, frames, width of a head)
        for linear in (layer.temporal_q, layer.temporal_k, layer.temporal_v)
    )
    mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value).permute(2, 0, 1, 3).flatten(2)
    assert torch.allclose(hook.among_frames(shown, 4), layer.temporal_o(mixed), atol=1e-4)


def test_gradients_reach_the_model_and_not_the_base_when_it_is_trained(unet):
    model = model_for(unet, 2, control=True).train()
    with shared_attention(UNetNetwork(unet), model, control=torch.rand(1, 3, 64, 64), trainable=True) as run:
        predicted = run(*batch(2))
    predicted.square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in unet.parameters())


# what does not go together


def test_wrong_inputs_are_refused(unet):
    def refused(match, model, rows=2, frames=(), **options):
        x, timestep, texts = batch(rows)
        with pytest.raises(InvalidRequest, match=match), shared_attention(UNetNetwork(unet), model, **options) as run:
            run(x, timestep, replace(texts, frames=frames))

    refused("given picture, and none was given", model_for(unet, 2, control=True))
    refused("takes no picture", model_for(unet, 2), control=torch.rand(1, 3, 64, 64))
    refused("3 prompts for 2 frames", model_for(unet, 2), frames=(None,) * 3)
    refused("2 pictures at a time, and 3", model_for(unet, 2), rows=3)


def test_prompts_of_any_lengths_take_no_more_room_than_the_longest(unet):
    given = batch(3, positive=[True, True, True])
    prompts = [torch.randn(1, length, TEXT_WIDTH) for length in (43 * 77, 47 * 77, 53 * 77)]
    seen: list[int] = []

    def note(_module: object, _args: object, kwargs: dict[str, torch.Tensor]) -> None:
        if (texts := kwargs.get("encoder_hidden_states")) is not None:
            seen.append(texts.shape[1])

    hooks = [module.register_forward_pre_hook(note, with_kwargs=True) for module in unet.modules()]
    with shared_attention(UNetNetwork(unet), model_for(unet, 3)) as run:
        assert run(*given[:2], replace(given[2], frames=tuple(prompts))).isfinite().all()
    for hook in hooks:
        hook.remove()
    assert max(seen) == 53 * 77
