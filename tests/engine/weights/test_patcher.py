"""Patches add what they should, stack in any order of calls, and leave no trace."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from layerdiffuse_mcp.engine.weights.patcher import Full, LowRank, Patch, PatchStack, misfits
from tests.engine.narrow_bases import copy_of, read_base, same
from tests.narrow import networks


class Small(nn.Module):
    def __init__(self, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(1)
        self.linear = nn.Linear(6, 5, dtype=dtype)
        self.conv = nn.Conv2d(3, 4, 3, dtype=dtype)
        self.untouched = nn.Linear(2, 2, dtype=dtype)


def _patches() -> list[Patch]:
    torch.manual_seed(2)
    return [
        Patch("a", {"linear.weight": (LowRank(torch.randn(5, 2), torch.randn(2, 6)),)}),
        Patch("b", {"linear.weight": (Full(torch.randn(5, 6)),), "linear.bias": (Full(torch.randn(5)),)}, 0.3),
        Patch("c", {"conv.weight": (LowRank(torch.randn(4, 2, 1, 1), torch.randn(2, 3, 3, 3), alpha=1.0),)}, -1.5),
    ]


PATCHES = _patches()
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@settings(deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(range(3)), unique=True, max_size=3), max_size=6),
    st.sampled_from(DTYPES),
    st.sampled_from([0, 150, 10_000]),
)
def test_after_any_history_the_weights_are_those_of_the_last_list_bit_for_bit(history, dtype, spare):
    module, fresh = Small(dtype), Small(dtype)
    before = copy_of(module)
    stack = PatchStack(module)
    stack.reserve = spare
    for chosen in history:
        stack.set(*(PATCHES[index] for index in chosen))
    PatchStack(fresh).set(*(PATCHES[index] for index in (history or [[]])[-1]))
    assert same(module, copy_of(fresh))
    stack.set()
    assert same(module, before)


def test_weights_that_were_taken_off_come_back_without_being_computed_while_there_is_room():
    module = Small()
    stack = PatchStack(module)
    base = stack.bytes
    stack.reserve = 4 * 30
    stack.set(PATCHES[0])
    patched = module.linear.weight.data
    stack.set()
    assert stack.bytes == base + 4 * 30
    stack.set(PATCHES[0].scaled(1.0))
    assert module.linear.weight.data is not patched
    assert module.linear.weight.data_ptr() == patched.data_ptr()
    stack.set(PATCHES[0].scaled(0.5))
    assert module.linear.weight.data_ptr() != patched.data_ptr()
    stack.reserve = 0
    assert stack.bytes == base


def test_weights_that_were_taken_off_do_not_outlive_a_change_of_type():
    module = Small()
    stack = PatchStack(module)
    stack.reserve = 10_000
    stack.set(PATCHES[0])
    stack.set()
    module.to(torch.float16)
    stack.set(PATCHES[0])
    assert module.linear.weight.dtype == torch.float16


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_originals_come_from_the_file_bit_for_bit(tmp_path, family, dtype):
    checkpoint = read_base(tmp_path, family)
    unet = checkpoint.unet(dtype)
    before = copy_of(unet)
    stack = PatchStack(unet, checkpoint.parts["unet"].weights)
    stack.set(Patch("all", {name: (Full(torch.randn(p.shape)),) for name, p in unet.named_parameters()}))
    assert not any(torch.equal(parameter, before[name]) for name, parameter in unet.named_parameters())
    stack.set()
    assert same(unet, before)


def test_text_encoders_are_restored_from_the_file_too(tmp_path):
    checkpoint = read_base(tmp_path, "sdxl")
    for encoder, part in zip(checkpoint.text_encoders(), ("text_encoder", "text_encoder_2"), strict=True):
        before = copy_of(encoder)
        stack = PatchStack(encoder, checkpoint.parts[part].weights)
        stack.set(Patch("all", {name: (Full(torch.randn(p.shape)),) for name, p in encoder.named_parameters()}))
        stack.set()
        assert same(encoder, before)


def test_a_low_rank_offset_is_up_times_down_times_alpha_over_rank():
    module = Small()
    before = copy_of(module)
    up, down = torch.randn(5, 3), torch.randn(3, 6)
    PatchStack(module).set(Patch("p", {"linear.weight": (LowRank(up, down, alpha=6.0),)}, 0.5))
    assert torch.allclose(module.linear.weight, before["linear.weight"] + 0.5 * 2.0 * up @ down, atol=1e-5)


def test_a_decomposed_convolution_is_rebuilt_with_its_core():
    module = Small()
    before = copy_of(module)
    up, core, down = torch.randn(4, 2, 1, 1), torch.randn(2, 3, 3, 3), torch.randn(3, 3, 1, 1)
    PatchStack(module).set(Patch("p", {"conv.weight": (LowRank(up, down, mid=core),)}))
    whole = torch.einsum("or,rskl,sc->ockl", up[..., 0, 0], core, down[..., 0, 0])
    assert torch.allclose(module.conv.weight, before["conv.weight"] + whole, atol=1e-5)


def test_a_wider_first_convolution_keeps_the_base_in_its_first_channels():
    unet, _, _ = networks("sdxl")
    base = unet.conv_in.weight.detach().clone()
    wide = torch.randn(base.shape[0], 12, 3, 3)
    patch = Patch("wide", {"conv_in.weight": (Full(wide),)}, 0.5)
    stack = PatchStack(unet)
    for _ in range(2):  # what fits is told by the base, whatever is patched in at the moment
        assert misfits(patch, unet) == []
        stack.set(patch)
    assert torch.allclose(unet.conv_in.weight[:, :4], base + 0.5 * wide[:, :4], atol=1e-6)
    assert torch.equal(unet.conv_in.weight[:, 4:], 0.5 * wide[:, 4:])
    assert unet.conv_in.in_channels == 12
    stack.set()
    assert torch.equal(unet.conv_in.weight, base)
    assert unet.conv_in.in_channels == 4


def test_what_no_patch_changes_is_not_computed_anew():
    module = Small()
    stack = PatchStack(module)
    stack.set(PATCHES[0], PATCHES[2])
    kept = module.conv.weight.data_ptr()
    stack.set(PATCHES[1], PATCHES[2])
    stack.set(PATCHES[1].scaled(0.3), PATCHES[2])
    assert module.conv.weight.data_ptr() == kept


def test_a_patch_that_fails_half_way_leaves_the_base():
    class Broken(Full):
        def add_to(self, weight, strength):
            raise MemoryError

    module = Small()
    before = copy_of(module)
    stack = PatchStack(module)
    stack.set(PATCHES[1])
    with pytest.raises(MemoryError):
        stack.set(PATCHES[0], Patch("broken", {"conv.weight": (Broken(torch.ones(1)),)}))
    assert same(module, before)
    stack.set(PATCHES[1])
    stack.set()
    assert same(module, before)


@pytest.mark.parametrize(
    "offset",
    [
        Full(torch.ones(5, 7)),
        Full(torch.ones(5)),
        LowRank(torch.ones(5, 2), torch.ones(3, 6)),
        LowRank(torch.ones(4, 2), torch.ones(2, 6)),
        LowRank(torch.ones(5, 2), torch.ones(2, 7)),
    ],
)
def test_an_offset_of_another_shape_does_not_fit(offset):
    assert offset.shape(torch.Size((5, 6))) is None
