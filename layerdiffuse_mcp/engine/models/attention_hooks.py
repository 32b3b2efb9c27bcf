"""Hooks of a UNet's attention layers: the one way in which adapters change what attention computes.

    def louder(call: AttentionCall, attend: Attend) -> Tensor:
        return 2 * attend(call)

    with hooked_attention(unet, [{"mid_block.attentions.0.transformer_blocks.0.attn2": louder}], conditioning):
        unet(...)

The hooks of a layer are a chain, in the order in which their adapters were applied: `attend` computes what lies below a
hook, the base's own attention at last. A hook may add to that (a picture prompt adds to the cross attention's output),
call it with other states, or compute something of its own (attention sharing); so one that replaces attention belongs
below those that add to it. Which rows, frames and layers it acts on is a hook's own affair.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from layerdiffuse_mcp.engine.types import Conditioning


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """One call of an attention layer.

    states: what comes in, (B, places, C). texts: what is attended to, (B, T, C); None in self-attention.
    conditioning: of the UNet's whole call; its rows are those of `states`.
    """

    attention: Attention
    states: Tensor
    texts: Tensor | None
    conditioning: Conditioning


Attend = Callable[[AttentionCall], Tensor]
"""An attention layer's output (B, places, C), before it is added to the states."""

AttentionHook = Callable[[AttentionCall, Attend], Tensor]
"""`hook(call, attend)` returns what `attend(call)` would, changed."""

AttentionHooks = Mapping[str, AttentionHook]
"""The hooks of one adapter, by the names of the attention layers in the UNet."""


@contextmanager
def hooked_attention(
    unet: UNet2DConditionModel, chain: Sequence[AttentionHooks], conditioning: Conditioning
) -> Generator[None]:
    """The UNet with these hooks for as long as the block lasts, the first of `chain` next to the base.

    Raises:
        AttributeError: a hook is for a layer that the UNet does not have; no hook is on then.
    """
    names = dict.fromkeys(name for hooks in chain for name in hooks)
    layers = {name: cast(Attention, unet.get_submodule(name)) for name in names}
    base = {name: layer.processor for name, layer in layers.items()}
    try:
        for name, layer in layers.items():
            mine = [hooks[name] for hooks in chain if name in hooks]
            layer.set_processor(cast(Any, _Chain(base[name], mine, conditioning)))
        yield
    finally:
        for name, layer in layers.items():
            layer.set_processor(base[name])


class _Chain:
    """A diffusers attention processor that calls hooks, and another processor below them."""

    def __init__(self, base: Callable[..., Tensor], hooks: Sequence[AttentionHook], conditioning: Conditioning):
        self._base = base
        self._hooks = hooks
        self._conditioning = conditioning

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        def base(call: AttentionCall) -> Tensor:
            return self._base(
                call.attention,
                call.states,
                encoder_hidden_states=call.texts,
                attention_mask=attention_mask,
                temb=temb,
            )

        attend: Attend = base
        for hook in self._hooks:
            attend = _above(attend, hook)
        return attend(AttentionCall(attn, hidden_states, encoder_hidden_states, self._conditioning))


def _above(attend: Attend, hook: AttentionHook) -> Attend:
    return lambda call: hook(call, attend)
