"""A UNet as samplers see a network: `network(x, timestep, conditioning) -> model output`.

    network = UNetNetwork(checkpoint.unet())
    epsilon = network(x, timestep, conditioning)

Knows nothing of sigmas, guidance or condition pictures: rows in, rows out.
"""

from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from layerdiffuse_mcp.engine.types import Conditioning


class UNetNetwork:
    """A `checkpoints.VectorUNet` as a `types.Network`, computing in the UNet's dtype."""

    def __init__(self, unet: UNet2DConditionModel):
        self.unet = unet

    def __call__(self, x: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        """x (B, C + K, h, w), timestep (B,), conditioning of B rows -> the output (B, C, h, w) in x's dtype."""
        dtype = self.unet.dtype
        vector = {} if conditioning.vector is None else {"vector": conditioning.vector.to(dtype)}
        output = self.unet(
            x.to(dtype),
            timestep,
            encoder_hidden_states=conditioning.context.to(dtype),
            added_cond_kwargs=vector,
            return_dict=False,
        )[0]
        return output.to(x.dtype)
