"""How layer files act on a denoiser: one small protocol, a table of those who keep it.

    adapter = ADAPTERS[method.adapter]
    condition = adapter.condition(model, pictures) if method.inputs else None
    with adapter.applied(model, networks, method, strength, condition) as networks:
        ...                                  # networks.layered is a Network, networks.base one without the file

Adapters take networks and give networks, so that one can be applied on top of another, in a plan's order: what they put
on the denoiser are patches of its weights and hooks of its attention layers (see `models/networks.py`), and they may
put a network around it. All that is gone when their `with` block ends.
"""

from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor

from layerdiffuse_mcp.engine.layers.attention_sharing import AttentionSharing
from layerdiffuse_mcp.engine.layers.conditions import ConditionPictures
from layerdiffuse_mcp.engine.layers.weight_offset import WeightOffset
from layerdiffuse_mcp.engine.models.components import Components
from layerdiffuse_mcp.engine.models.networks import Networks
from layerdiffuse_mcp.engine.models.stable_diffusion import StableDiffusion
from layerdiffuse_mcp.engine.types import Conditioning
from layerdiffuse_mcp.families.spec import LayerMethod


class LayerAdapter(Protocol):
    """What a layer mechanism can do."""

    def condition(self, model: StableDiffusion, inputs: ConditionPictures) -> Tensor:
        """What the method's pictures become, computed once for a batch."""
        ...

    def conditioned(self, conditioning: Conditioning, condition: Tensor) -> Conditioning:
        """A conditioning with as much of the condition as goes into the denoiser itself."""
        ...

    def applied(
        self,
        model: StableDiffusion,
        networks: Networks,
        method: LayerMethod,
        strength: float,
        condition: Tensor | None = None,
    ) -> AbstractContextManager[Networks]:
        """The networks with the method's file on them.

        Raises:
            ModelNotFound: the file is not on this machine.
            LayerFileError: it is damaged or does not fit.
        """
        ...

    def numbers(self, components: Components, method: LayerMethod) -> int:
        """How many numbers are beside the denoiser's own while the method's file is on it."""
        ...


ADAPTERS: dict[str, LayerAdapter] = {"weight_offset": WeightOffset(), "attention_sharing": AttentionSharing()}
"""By `LayerMethod.adapter`."""
