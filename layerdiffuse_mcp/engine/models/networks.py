"""A UNet as samplers see a network, and what layer adapters put on it.

    network = UNetNetwork(stack, loras)
    epsilon = network(x, timestep, conditioning)
    with network.patched(patch), network.hooked(hooks):
        network(x, timestep, conditioning)          # with both
        network.base(x, timestep, conditioning)     # without; `loras` stay

Knows nothing of sigmas, guidance or condition pictures: rows in, rows out.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar, cast

from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from layerdiffuse_mcp.engine.models.attention_hooks import AttentionHooks, hooked_attention
from layerdiffuse_mcp.engine.types import Conditioning, Network
from layerdiffuse_mcp.engine.weights.patcher import Patch, PatchStack

T = TypeVar("T")


class UNetNetwork:
    """A UNet (see `weights.networks.VectorUNet`) as a `types.Network`, computing in its dtype.

    unet: itself, or with its patches. below: those that belong to the base (user LoRAs).

    What adapters put on it acts in the order in which they did, as long as their `with` blocks last. Hooks are on the
    attention layers only while the UNet computes. Weights change when they are needed and others are there: what a run
    left in them costs the next one nothing, if that wants the same, and is never seen by one that does not.
    """

    def __init__(self, unet: UNet2DConditionModel | PatchStack, below: Sequence[Patch] = ()):
        self._stack = unet if isinstance(unet, PatchStack) else PatchStack(unet)
        self._below = tuple(below)
        self._patches: list[Patch] = []
        self._hooks: list[AttentionHooks] = []

    @property
    def unet(self) -> UNet2DConditionModel:
        """The UNet itself."""
        return cast(UNet2DConditionModel, self._stack.module)

    @property
    def patches(self) -> tuple[Patch, ...]:
        """The patches that are on, the base's first."""
        return (*self._below, *self._patches)

    def __call__(self, x: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        """x (B, C + K, h, w), timestep (B,), conditioning of B rows -> the output (B, C, h, w) in x's dtype."""
        self.set_weights()
        return self._computed(self._hooks, x, timestep, conditioning)

    def base(self, x: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        """The same without anything that adapters put on it."""
        self._stack.set(*self._below)
        return self._computed((), x, timestep, conditioning)

    def set_weights(self) -> None:
        """Make the UNet's weights those of `patches`: for adapters that read them, too."""
        self._stack.set(*self.patches)

    @contextmanager
    def patched(self, patch: Patch) -> Generator[None]:
        """With a patch on top of those that are on."""
        with _appended(self._patches, patch):
            yield

    @contextmanager
    def hooked(self, hooks: AttentionHooks) -> Generator[None]:
        """With hooks on top of those that are on."""
        with _appended(self._hooks, hooks):
            yield

    def _computed(
        self, chain: Sequence[AttentionHooks], x: Tensor, timestep: Tensor, conditioning: Conditioning
    ) -> Tensor:
        dtype = self.unet.dtype
        *down, middle = conditioning.residuals or (None,)
        vector = {} if conditioning.vector is None else {"vector": conditioning.vector.to(dtype)}
        with hooked_attention(self.unet, chain, conditioning):
            output = self.unet(
                x.to(dtype),
                timestep,
                encoder_hidden_states=conditioning.context.to(dtype),
                added_cond_kwargs=vector,
                down_block_additional_residuals=tuple(down) or None,
                mid_block_additional_residual=middle,
                return_dict=False,
            )[0]
        return output.to(x.dtype)


@dataclass(frozen=True)
class Networks:
    """A denoiser with adapters on it, and without: the plain base goes on after `stop_at`.

    unet: what adapters patch and hook. layered: what asks it, with all that the adapters so far do around it. base: the
    same without layer files.
    """

    unet: UNetNetwork
    layered: Network
    base: Network

    @classmethod
    def of(cls, unet: UNetNetwork) -> "Networks":
        """With nothing on it yet."""
        return cls(unet, unet, unet.base)


@contextmanager
def _appended(items: list[T], item: T) -> Generator[None]:
    items.append(item)
    try:
        yield
    finally:
        items.remove(item)
