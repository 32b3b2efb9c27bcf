"""Offset files: every layout says the same, nothing is lost on the way, and the base comes back."""

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as run_settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from layerdiffuse_mcp.engine.layers.weight_offset import offsets_from_tensors, read_offsets
from layerdiffuse_mcp.engine.models.networks import UNetNetwork
from layerdiffuse_mcp.engine.weights.ldm_export import to_ldm
from layerdiffuse_mcp.engine.weights.ldm_names import unet_key_map
from layerdiffuse_mcp.engine.weights.patcher import Patch, PatchStack
from layerdiffuse_mcp.errors import LayerFileError, ModelNotFound
from tests.engine.narrow_bases import conditioning, copy_of, read_base, same
from tests.narrow import networks

RANK = 3


@pytest.fixture(scope="module")
def unet():
    return networks("sdxl")[0]


@pytest.fixture(autouse=True)
def _untouched(unet):
    before = copy_of(unet)
    yield
    assert same(unet, before)


def _ldm(unet):
    return to_ldm(unet.state_dict(), unet_key_map(unet.config))


def lora_tensors(unet, dtype=torch.float32):
    """A file as `layer_xl_transparent_attn` is."""
    torch.manual_seed(4)
    tensors = {}
    for key, tensor in _ldm(unet).items():
        if ".attn" in key and ".to_" in key and key.endswith(".weight"):
            tensors[f"diffusion_model.{key}::lora::0"] = torch.randn(tensor.shape[0], RANK, dtype=dtype)
            tensors[f"diffusion_model.{key}::lora::1"] = torch.randn(RANK, tensor.shape[1], dtype=dtype)
    return tensors


def diff_tensors(unet, extra=8):
    """A file as `layer_xl_bgble2fg` is."""
    torch.manual_seed(5)
    tensors = {}
    for key, tensor in _ldm(unet).items():
        if not any(name in key for name in (".to_q.", ".to_k.", ".to_v.")):
            shape = list(tensor.shape)
            shape[1:2] = [shape[1] + extra] if key == "input_blocks.0.0.weight" else shape[1:2]
            tensors[f"diffusion_model.{key}::diff::0"] = torch.randn(shape)
    return tensors


def patched(unet, tensors, strength=1.0):
    """The state of `unet` under a file's tensors; unpatched again."""
    stack = PatchStack(unet)
    stack.set(offsets_from_tensors(tensors, unet).scaled(strength))
    state = copy_of(unet)
    stack.set()
    return state


def close(state, other):
    return state.keys() == other.keys() and all(torch.allclose(state[k], other[k], atol=1e-4) for k in state)


def _as_diffusers(unet, tensors, spelling):
    """`::lora::` tensors under a diffusers LoRA's names."""
    names, renamed = unet_key_map(unet.config), {}
    for key, tensor in tensors.items():
        model_key, _, slot = key.removeprefix("diffusion_model.").split("::")
        module = names[model_key].removesuffix(".weight")
        renamed[spelling[int(slot)].format(module=module)] = tensor
    return renamed


# layouts

SPELLINGS = {
    "peft": ("unet.{module}.lora_B.weight", "unet.{module}.lora_A.weight"),
    "peft, bare": ("{module}.lora_B.weight", "{module}.lora_A.weight"),
    "lora.up": ("unet.{module}.lora.up.weight", "unet.{module}.lora.down.weight"),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_lora_in_diffusers_layout_is_the_same_as_the_released_one(unet, spelling):
    tensors = lora_tensors(unet)
    assert close(patched(unet, _as_diffusers(unet, tensors, SPELLINGS[spelling])), patched(unet, tensors))


def test_full_differences_under_plain_diffusers_keys_are_the_same_as_the_released_files(unet):
    tensors, names = diff_tensors(unet), unet_key_map(unet.config)
    plain = {names[key.removeprefix("diffusion_model.").split("::")[0]]: tensor for key, tensor in tensors.items()}
    assert plain["conv_in.weight"].shape[1] == 12
    assert close(patched(unet, plain), patched(unet, tensors))


def test_low_rank_and_full_differences_say_the_same(unet):
    tensors, names, plain = lora_tensors(unet), unet_key_map(unet.config), {}
    for key in tensors:
        if key.endswith("::0"):
            model_key = key.removeprefix("diffusion_model.").removesuffix("::lora::0")
            plain[names[model_key]] = tensors[key] @ tensors[key.replace("::0", "::1")]
    assert close(patched(unet, plain), patched(unet, tensors))


def test_alpha_and_core_have_slots_of_their_own(unet):
    key, name = "diffusion_model.out.2.weight", "conv_out.weight"
    out, into = unet.conv_out.weight.shape[:2]
    up, down, core = torch.randn(out, 2), torch.randn(RANK, into), torch.randn(2, RANK, 3, 3)
    slots = {f"{key}::lora::{slot}": t for slot, t in enumerate((up, down, torch.tensor(1.5), core))}
    offset = torch.einsum("or,rskl,sc->ockl", up, core, down) * 1.5 / RANK
    assert torch.allclose(patched(unet, slots)[name], unet.conv_out.weight + offset, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_files_of_any_float_type_are_added_in_float32(unet, tmp_path, dtype):
    tensors = lora_tensors(unet, dtype)
    save_file(tensors, tmp_path / "layer.safetensors")
    stack = PatchStack(unet)
    stack.set(read_offsets(tmp_path / "layer.safetensors", unet))
    key = "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight::lora::"
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    now = unet.get_parameter(name).clone()
    stack.set()
    expected = unet.get_parameter(name) + tensors[f"{key}0"].float() @ tensors[f"{key}1"].float()
    assert torch.allclose(now, expected, atol=1e-5)


@run_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=10)
@given(strength=st.floats(0, 2))
def test_strength_scales_the_offset_and_any_strength_is_undone(unet, strength):
    tensors = diff_tensors(unet)
    state = patched(unet, tensors, strength)
    key, name = "diffusion_model.out.2.weight::diff::0", "conv_out.weight"
    assert torch.allclose(state[name], unet.conv_out.weight + strength * tensors[key], atol=1e-5)
    assert state["conv_in.weight"].shape[1] == 12


def test_under_a_layer_file_from_disk_a_base_from_disk_is_restored(tmp_path):
    checkpoint = read_base(tmp_path, "sdxl")
    base = checkpoint.unet()
    before = copy_of(base)
    save_file(diff_tensors(base), tmp_path / "layer.safetensors")
    stack = PatchStack(base, checkpoint.parts["unet"].weights)
    stack.set(read_offsets(tmp_path / "layer.safetensors", base))
    assert not same(base, before)
    stack.set()
    assert same(base, before)


# in use


def test_the_base_network_is_the_untouched_base_and_loras_below_stay(unet):
    torch.manual_seed(6)
    x, t, given = torch.randn(2, 4, 8, 8), torch.tensor([500, 500]), conditioning(2, "sdxl")
    below = Patch("lora", offsets_from_tensors(lora_tensors(unet), unet).offsets, 0.1)
    layer = offsets_from_tensors(diff_tensors(unet, extra=4), unet)
    stack = PatchStack(unet)
    stack.set(below)
    plain = unet(x, t, given.context, added_cond_kwargs={"vector": given.vector}).sample
    network = UNetNetwork(stack, [below])
    with network.patched(layer.scaled(0.1)):
        wide = torch.cat([x, torch.randn(2, 4, 8, 8)], dim=1)
        layered = network(wide, t, given)
        assert torch.equal(network.base(x, t, given), plain)
        assert torch.equal(network(wide, t, given), layered)
        assert not torch.allclose(layered, plain, atol=1e-3)
    assert torch.equal(network(x, t, given), plain)
    assert stack.patches == (below,)
    stack.set()


def test_a_patch_that_is_on_already_is_not_applied_again(unet):
    stack = PatchStack(unet)
    layer = offsets_from_tensors(lora_tensors(unet), unet)
    x, t, given = torch.randn(1, 4, 8, 8), torch.tensor([5]), conditioning(1, "sdxl")
    network = UNetNetwork(stack)
    with network.patched(layer.scaled(0.1)):
        network(x, t, given)
    place = unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q
    kept = place.weight.data_ptr()
    network = UNetNetwork(stack)
    with network.patched(layer.scaled(0.1)):
        network(x, t, given)
        assert place.weight.data_ptr() == kept
    stack.set()


# what does not fit


def _refused(tensors, unet, match):
    with pytest.raises(LayerFileError, match=match):
        offsets_from_tensors(tensors, unet, "given.safetensors")


def test_a_key_too_many_is_named(unet):
    extra = {"diffusion_model.input_blocks.99.0.weight::diff::0": torch.zeros(3)}
    match = r"an SDXL layer file.*find no place.*input_blocks\.99\.0\.weight::diff::0"
    _refused(diff_tensors(unet) | extra, unet, match)


@pytest.mark.parametrize("suffix", ["::lora::9", "::lora::x", "::swap::0", "::diff::1"])
def test_a_slot_that_nobody_knows_is_refused(unet, suffix):
    extra = {f"diffusion_model.out.2.weight{suffix}": torch.zeros(3)}
    _refused(diff_tensors(unet) | extra, unet, "find no place")


def test_up_to_five_keys_are_named(unet):
    extra = {f"diffusion_model.nowhere.{i}.weight::diff::0": torch.zeros(3) for i in range(9)}
    _refused(diff_tensors(unet) | extra, unet, r"nowhere\.4\.weight::diff::0 and 4 more")


@pytest.mark.parametrize("slot", [0, 1])
def test_half_of_a_low_rank_pair_is_named(unet, slot):
    tensors = lora_tensors(unet)
    del tensors[f"diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight::lora::{slot}"]
    _refused(tensors, unet, r"mid_block.*to_q\.weight \((up|down) alone\)")


def test_a_missing_tensor_is_named(unet):
    tensors = diff_tensors(unet)
    del tensors["diffusion_model.output_blocks.0.0.in_layers.2.weight::diff::0"]
    _refused(tensors, unet, r"is incomplete: it lacks up_blocks\.0\.resnets\.0\.conv1\.weight")


def test_a_file_for_a_base_of_another_size_is_refused(unet):
    tensors = {key: torch.zeros(*(2 * n for n in t.shape)) for key, t in diff_tensors(unet).items()}
    _refused(tensors, unet, "is for a base of another size")


def test_a_file_of_the_other_family_says_so(unet):
    sharing = {"hookers.layers.0.temporal_i.weight": torch.zeros(8, 8)}
    _refused(sharing, unet, r"an SD 1.5 layer file.*this base is SDXL")
    _refused(lora_tensors(unet), networks("sd15")[0], r"an SDXL layer file.*this base is SD 1.5")


def test_a_file_of_another_kind_says_so(unet):
    decoder = {"latent_conv_in.weight": torch.zeros(1), "mid_block.x": torch.zeros(1)}
    _refused(decoder, unet, "a transparent VAE decoder")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_is_refused_and_named(unet, tmp_path, bad):
    tensors = diff_tensors(unet)
    tensors["diffusion_model.out.2.bias::diff::0"][1] = bad
    save_file(tensors, tmp_path / "layer.safetensors")
    with pytest.raises(LayerFileError, match=r"not numbers .*out\.2\.bias::diff::0"):
        read_offsets(tmp_path / "layer.safetensors", unet)


def test_damaged_files_are_named(unet, tmp_path):
    path = tmp_path / "layer.safetensors"
    with pytest.raises(ModelNotFound):
        read_offsets(path, unet)
    save_file(diff_tensors(unet), path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(LayerFileError, match="cut short"):
        read_offsets(path, unet)
    torch.save(diff_tensors(unet), path)
    with pytest.raises(LayerFileError, match="pickle file under another name"):
        read_offsets(path, unet)
