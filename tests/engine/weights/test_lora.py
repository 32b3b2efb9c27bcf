"""User LoRAs: every layout finds its modules, weights count as in A1111, and nothing stays behind."""

import pytest
import torch
from safetensors.torch import save_file

from layerdiffuse_mcp.engine.layers.weight_offset import offsets_from_tensors
from layerdiffuse_mcp.engine.weights.ldm_names import unet_modules
from layerdiffuse_mcp.engine.weights.lora import parse_lora, read_lora
from layerdiffuse_mcp.engine.weights.patcher import PatchStack
from layerdiffuse_mcp.errors import LayerFileError, ModelNotFound
from tests.engine.layers.test_weight_offset import diff_tensors
from tests.engine.narrow_bases import copy_of, read_base, same
from tests.narrow import networks

RANK, ALPHA = 2, 1.0


@pytest.fixture(params=["sd15", "sdxl"])
def base(request, tmp_path):
    """{part: network} of a base that was read from disk, and a stack for each."""
    checkpoint = read_base(tmp_path, request.param)
    parts = {"unet": checkpoint.unet()}
    parts |= dict(zip(("text_encoder", "text_encoder_2"), checkpoint.text_encoders(), strict=False))
    return parts, {part: PatchStack(net, checkpoint.parts[part].weights) for part, net in parts.items()}


def targets(part, network):
    """The modules that a trainer would adapt: attention, feed-forward, and a convolution of the UNet."""
    ends = ("to_q", "to_out.0", "proj_in", "net.2", "conv1") if part == "unet" else ("q_proj", "fc1")
    return {name: module.weight for name, module in network.named_modules() if name.endswith(ends)}


def pairs(parts):
    """{(part, module): (up, down)} with random numbers."""
    torch.manual_seed(8)
    found = {}
    for part, network in parts.items():
        for name, weight in targets(part, network).items():
            tail = weight.shape[2:]
            up = torch.randn(weight.shape[0], RANK, *(1 for _ in tail))
            found[part, name] = up, torch.randn(RANK, weight.shape[1], *tail)
    return found


def kohya(parts, tensors):
    """As kohya's trainer writes: LDM names for SDXL's UNet, diffusers' for SD1.5's."""
    unet = parts["unet"]
    ldm = {name: key for key, name in unet_modules(unet.config).items()}
    sdxl = "text_encoder_2" in parts
    te = {"text_encoder": "lora_te1_" if sdxl else "lora_te_", "text_encoder_2": "lora_te2_"}
    out = {}
    for (part, name), (up, down) in tensors.items():
        if part == "unet":
            key = "lora_unet_" + (ldm[name] if sdxl else name).replace(".", "_")
        else:
            key = te[part] + "text_model_" + name.removeprefix("text_model.").replace(".", "_")
        out |= {f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down, f"{key}.alpha": torch.tensor(ALPHA)}
    return out


def peft(parts, tensors):
    """As diffusers saves: no alpha, so that its share is in the matrices."""
    out = {}
    for (part, name), (up, down) in tensors.items():
        key = f"{part}.{name}" if part == "unet" else f"{part}.text_model.{name.removeprefix('text_model.')}"
        out |= {f"{key}.lora_B.weight": up * (ALPHA / RANK), f"{key}.lora_A.weight": down}
    return out


def processors(parts, tensors):
    """As diffusers saved long ago: attention only, under the processors' names."""
    out = {}
    for (part, name), (up, down) in tensors.items():
        if part == "unet" and ".attn" in name:
            block, projection = name.removesuffix(".0").rsplit(".", 1)
            out |= {f"unet.{block}.processor.{projection}_lora.up.weight": up * (ALPHA / RANK)}
            out |= {f"unet.{block}.processor.{projection}_lora.down.weight": down}
    return out


def expected(network, tensors, part, weight):
    state = copy_of(network)
    for (where, name), (up, down) in tensors.items():
        if where == part:
            change = (up.flatten(1) @ down.flatten(1)).view_as(state[f"{name}.weight"])
            state[f"{name}.weight"] += weight * ALPHA / RANK * change
    return state


def close(network, state):
    return all(torch.allclose(tensor, state[key], atol=1e-4) for key, tensor in network.state_dict().items())


@pytest.mark.parametrize("layout", [kohya, peft])
def test_every_module_of_a_file_is_changed_by_its_share(base, tmp_path, layout):
    parts, stacks = base
    before, tensors = {part: copy_of(net) for part, net in parts.items()}, pairs(base[0])
    save_file({k: t.contiguous() for k, t in layout(parts, tensors).items()}, tmp_path / "style.safetensors")
    patches = read_lora(tmp_path / "style.safetensors").patches(parts, weight=0.8, text_weight=0.5)
    for part, network in parts.items():
        goal = expected(network, tensors, part, 0.8 if part == "unet" else 0.5)
        stacks[part].set(patches[part])
        assert close(network, goal)
        assert not same(network, before[part])
        stacks[part].set()
        assert same(network, before[part])


def test_attention_processor_names_find_their_projections(base):
    parts, stacks = base
    tensors = {key: value for key, value in pairs(parts).items() if ".attn" in key[1]}
    patch = parse_lora(processors(parts, tensors), "old").patches({"unet": parts["unet"]})["unet"]
    goal = expected(parts["unet"], tensors, "unet", 1.0)
    stacks["unet"].set(patch)
    assert close(parts["unet"], goal)


def test_full_differences_of_weights_and_biases_are_added(base):
    parts, stacks = base
    unet = parts["unet"]
    before = copy_of(unet)
    ones = {name: torch.ones_like(before[f"conv_out.{name}"]) for name in ("weight", "bias")}
    tensors = {"lora_unet_conv_out.diff": ones["weight"], "lora_unet_conv_out.diff_b": ones["bias"]}
    stacks["unet"].set(parse_lora(tensors, "full").patches({"unet": unet}, 0.5)["unet"])
    assert torch.allclose(unet.conv_out.weight, before["conv_out.weight"] + 0.5)
    assert torch.allclose(unet.conv_out.bias, before["conv_out.bias"] + 0.5)


def test_several_loras_and_a_layer_model_stack_and_come_off_in_any_order(tmp_path):
    checkpoint = read_base(tmp_path, "sdxl")
    unet = checkpoint.unet()
    before = copy_of(unet)
    stack = PatchStack(unet, checkpoint.parts["unet"].weights)
    layer = offsets_from_tensors(diff_tensors(unet), unet)
    lora = parse_lora(kohya({"unet": unet, "text_encoder_2": None}, pairs({"unet": unet})), "style")
    first, second = (lora.patches({"unet": unet}, weight)["unet"] for weight in (0.8, -0.3))
    stack.set(first)
    only_first = copy_of(unet)
    stack.set(first, second, layer)
    assert unet.conv_in.weight.shape[1] == 12
    stack.set(first)
    assert same(unet, only_first)
    stack.set(layer, first)
    stack.set()
    assert same(unet, before)


def test_a_lora_for_the_other_family_is_refused_and_names_what_does_not_fit():
    sd15, sdxl = networks("sd15")[0], networks("sdxl")[0]
    tensors = kohya({"unet": sdxl, "text_encoder_2": None}, pairs({"unet": sdxl}))
    with pytest.raises(
        LayerFileError, match=r"looks like a LoRA\) does not fit this base: .*and \d+ more found no place"
    ):
        parse_lora(tensors, "style").patches({"unet": sd15})


def test_half_of_a_pair_is_named():
    unet = networks("sd15")[0]
    with pytest.raises(LayerFileError, match="conv_out found no place"):
        parse_lora({"lora_unet_conv_out.lora_up.weight": torch.ones(4, 2, 1, 1)}, "half").patches({"unet": unet})


@pytest.mark.parametrize(
    ("key", "title"),
    [("hada_w1_a", "LoHa"), ("lokr_w1", "LoKr"), ("dora_scale", "DoRA"), ("oft_blocks", "OFT")],
)
def test_adapters_that_are_not_supported_are_named(key, title):
    with pytest.raises(LayerFileError, match=f"adapter of type {title}"):
        parse_lora({f"lora_unet_conv_out.{key}": torch.ones(1)}, "other")


def test_a_file_that_is_no_lora_says_what_it_is():
    with pytest.raises(LayerFileError, match="is a VAE alone, not a LoRA"):
        parse_lora({"first_stage_model.decoder.conv_in.weight": torch.ones(1)}, "vae")


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "style.safetensors"
    with pytest.raises(ModelNotFound):
        read_lora(path)
    tensors = {f"lora_unet_conv_out.lora_{side}.weight": torch.full((2, 2), torch.inf) for side in ("up", "down")}
    save_file(tensors, path)
    with pytest.raises(LayerFileError, match="not numbers"):
        read_lora(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(LayerFileError, match="cut short"):
        read_lora(path)
    torch.save(tensors, path)
    with pytest.raises(LayerFileError, match="pickle"):
        read_lora(path)
