"""ControlNets: networks that look at a picture and add to what a UNet's blocks put out.

    followed = [Followed.of(settings, picture), ...]
    controls = Controls(model, followed, method, levels.steps)
    networks = controls.on(networks)            # any networks, with whatever adapters are on them
    controls.next()                             # after each step

They lie around all that layer files put on a UNet: each reads the noisy latent and the common prompt, as a base's own
ControlNet does, whatever is patched or shared below; and it acts on the plain base after `stop_at`, too. Of a method's
frames those are controlled that the settings name. What several add is summed.

Source: Zhang et al., "Adding conditional control to text-to-image diffusion models" (2023); diffusers' pipelines.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from layerdiffuse_mcp.api.control import ControlSettings
from layerdiffuse_mcp.engine.layers.conditions import to_nchw
from layerdiffuse_mcp.engine.models.networks import Networks
from layerdiffuse_mcp.engine.models.stable_diffusion import StableDiffusion
from layerdiffuse_mcp.engine.sampling.tiles import crop
from layerdiffuse_mcp.engine.types import Conditioning, Network
from layerdiffuse_mcp.families.spec import LayerMethod
from layerdiffuse_mcp.images.alpha import Bytes, to_float
from layerdiffuse_mcp.images.control_maps import control_map


@dataclass(frozen=True, eq=False)
class Followed:
    """A ControlNet's settings, and the map that it sees: (1, 3, H, W), 0..1, at the size that is drawn."""

    asked: ControlSettings
    picture: Tensor

    @classmethod
    def of(cls, asked: ControlSettings, picture: Bytes) -> "Followed":
        """With the map of a picture (H, W, 4), uint8, at the size that is drawn."""
        return cls(asked, to_nchw(to_float(control_map(picture, asked.preprocess))))


@dataclass(frozen=True, eq=False)
class Control:
    """A ControlNet in a stage. frames: of the method, which of them are controlled."""

    network: Any
    followed: Followed
    frames: tuple[bool, ...]

    def residuals(self, x: Tensor, timestep: Tensor, conditioning: Conditioning) -> tuple[Tensor, ...]:
        """What it adds to the blocks' outputs, the middle one's last; rows of other frames get 0."""
        dtype = self.network.dtype
        rows = torch.arange(len(x), device=x.device)
        rows = rows[torch.tensor(self.frames, device=x.device)[rows % len(self.frames)]]
        picture = self.followed.picture
        seen = picture if conditioning.box is None else crop(picture, conditioning.box)
        vector = {}
        if conditioning.vector is not None:
            whole = conditioning.vector[rows].to(dtype)
            vector = {"text_embeds": whole[:, :1], "time_ids": whole[:, 1:]}
        down, middle = self.network(
            x[rows].to(dtype),
            timestep[rows],
            encoder_hidden_states=conditioning.context[rows].to(dtype),
            controlnet_cond=seen.to(x.device, dtype).expand(len(rows), -1, -1, -1),
            conditioning_scale=self.followed.asked.strength,
            added_cond_kwargs=vector,
            return_dict=False,
        )
        made = (*down, middle)
        if len(rows) == len(x):
            return made
        return tuple(one.new_zeros(len(x), *one.shape[1:]).index_copy_(0, rows, one) for one in made)


class Controls:
    """The ControlNets of a stage, of so many steps; it counts them."""

    def __init__(self, model: StableDiffusion, followed: Sequence[Followed], method: LayerMethod, steps: int):
        self._channels = model.latent.channels
        self._step, self._steps = 0, steps
        self._controls: list[Control] = []
        for one in followed:
            chosen = one.asked.frames
            frames = tuple(not chosen or role in chosen for role in method.outputs)
            if any(frames):
                self._controls.append(Control(model.control(one.asked.model), one, frames))

    def next(self) -> None:
        """A step is done."""
        self._step += 1

    def on(self, networks: Networks) -> Networks:
        """Networks that are controlled, with adapters and without."""
        if not self._controls:
            return networks
        return replace(networks, layered=self._around(networks.layered), base=self._around(networks.base))

    def _around(self, network: Network) -> Network:
        def controlled(x: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
            noisy = x[:, : self._channels]
            made = [
                control.residuals(noisy, timestep, conditioning)
                for control in self._controls
                if control.followed.asked.acts(self._step, self._steps)
            ]
            summed = tuple(sum(parts[1:], parts[0]) for parts in zip(*made, strict=True))
            return network(x, timestep, replace(conditioning, residuals=summed))

        return controlled
