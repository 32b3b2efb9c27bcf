"""Adding offsets to a network's weights, and taking them off again bit for bit.

    stack = PatchStack(unet, checkpoint.parts["unet"].weights)
    stack.set(lora, layer)      # weights = base + lora + layer
    stack.set(lora)             # only what `layer` touched is computed anew
    stack.set()                 # the base, every bit as it was loaded
    stack.offload(); stack.onload("cuda")       # no memory taken meanwhile; the patches are on again
    stack.reserve = 2 * 10**9                   # bytes for patched weights that a change took off, to come back at once

A patched weight is a pure function of the base and the list of patches, so there is no history to go wrong. Originals
come from the memory-mapped checkpoint whenever they are needed: without `reserve`, patching keeps no second copy of
anything. A network that has no file behind it keeps the originals of the touched weights instead. Sums are taken in
float32 and rounded once, to the network's dtype.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from layerdiffuse_mcp.engine.device.cancellation import check
from layerdiffuse_mcp.engine.weights.checkpoint import Weights, parameter_key

CONV_IN = "conv_in.weight"


class Offset(Protocol):
    """What is added to one weight."""

    def shape(self, base: torch.Size) -> tuple[int, ...] | None:
        """The shape of base + offset, or None when the offset does not fit a weight of shape `base`."""
        ...

    def add_to(self, weight: Tensor, strength: float) -> Tensor:
        """weight + strength * offset, in place where the shape allows it; `weight` is float32 on any device."""
        ...


@dataclass(frozen=True)
class Full:
    """An offset of the weight's own shape, or of a convolution with more input channels (the base gets zeros there)."""

    difference: Tensor

    def shape(self, base: torch.Size) -> tuple[int, ...] | None:
        """As `Offset.shape`."""
        ours = self.difference.shape
        wider = len(ours) == len(base) == 4 and ours[1] > base[1] and (ours[0], *ours[2:]) == (base[0], *base[2:])
        return tuple(ours) if wider or ours == base else None

    def add_to(self, weight: Tensor, strength: float) -> Tensor:
        """As `Offset.add_to`."""
        difference = self.difference.to(weight)
        if difference.shape != weight.shape:
            wide = weight.new_zeros(difference.shape)
            wide[:, : weight.shape[1]] = weight
            weight = wide
        return weight.add_(difference, alpha=strength)


@dataclass(frozen=True)
class LowRank:
    """up @ down * alpha / rank; convolutions flatten all but their first axis.

    up (out, rank, ...), down (rank, in, ...), both of any float type. `mid` (rank, rank, kernel, kernel) is the core
    of a Tucker-decomposed convolution (LyCORIS' LoCon). Without `alpha` nothing is scaled.
    """

    up: Tensor
    down: Tensor
    alpha: float | None = None
    mid: Tensor | None = None

    def shape(self, base: torch.Size) -> tuple[int, ...] | None:
        """As `Offset.shape`."""
        rank = self.down.shape[0]
        if self.up.shape[0] != base[0] or len(base) < 2:
            return None
        if self.mid is None:
            fits = self.up.shape[1:].numel() == rank and self.down.shape[1:].numel() == base[1:].numel()
        else:
            kernel = self.mid.shape[2:]
            fits = (*base[1:],) == (self.down.shape[1], *kernel) and self.mid.shape[:2] == (self.up.shape[1], rank)
        return tuple(base) if fits else None

    def add_to(self, weight: Tensor, strength: float) -> Tensor:
        """As `Offset.add_to`."""
        scale = strength if self.alpha is None else strength * self.alpha / self.down.shape[0]
        up, down = self.up.to(weight).flatten(1), self.down.to(weight)
        if self.mid is None:
            down = down.flatten(1)
        else:
            # (rank out, rank in, k, k) x (rank in, in) -> (rank out, in * k * k)
            down = torch.einsum("oikl,ic->ockl", self.mid.to(weight), down.flatten(1)).flatten(1)
        flat = weight.flatten(1) if weight.is_contiguous() else weight.reshape(weight.shape[0], -1)
        return flat.addmm_(up, down, alpha=scale).view(weight.shape)


@dataclass(frozen=True, eq=False)
class Patch:
    """A named set of offsets for the parameters of one network, with one strength for all."""

    name: str
    offsets: Mapping[str, tuple[Offset, ...]]
    """By the network's own parameter names."""
    strength: float = 1.0

    def scaled(self, strength: float) -> "Patch":
        """The same offsets at another strength."""
        return replace(self, strength=strength)


class PatchStack:
    """A network whose weights are its base's plus a list of patches.

    `weights` is where the base was loaded from; without it the originals of touched weights are kept. The network may
    be moved or converted between calls of `set`, as long as it has been unpatched (`set()`) for it when nothing is
    behind it. Weights that are offloaded are read and patched anew when they are onloaded. Setting and onloading ask
    `cancellation.check` before each weight.
    """

    def __init__(self, module: nn.Module, weights: Weights | None = None):
        self.module = module
        self._parameters = dict(module.named_parameters())  # they stay: only what they hold changes
        self.patches: tuple[Patch, ...] = ()
        self._weights = weights
        self._originals: dict[str, Tensor] = {}
        self._offloaded: set[str] = set()
        self._reserve = 0
        self._cached: list[tuple[tuple[Patch, ...], dict[str, Tensor]]] = []

    @property
    def bytes(self) -> int:
        """Memory that the weights take which are not offloaded, and those that were taken off and kept."""
        here = (weight for name, weight in self._parameters.items() if name not in self._offloaded)
        return _bytes(here) + sum(_bytes(weights.values()) for _, weights in self._cached)

    @property
    def reserve(self) -> int:
        """Bytes that patched weights may take which are not on the network now; the latest are kept."""
        return self._reserve

    @reserve.setter
    def reserve(self, room: int) -> None:
        self._reserve = room
        self._make_room(0)

    def offload(self, names: Iterable[str] | None = None, dtype: torch.dtype | None = None) -> None:
        """Let go of the weights of these names, or of all; in their place stands NaN of the same shape in `dtype`.

        Only for a network that has a file behind it.
        """
        assert self._weights is not None
        self._cached.clear()
        for name in self._parameters if names is None else names:
            weight = self._parameter(name)
            weight.data = torch.full((), torch.nan, dtype=dtype or weight.dtype).expand(weight.shape)
            self._offloaded.add(name)

    @torch.no_grad()
    def onload(self, device: torch.device | str, names: Iterable[str] | None = None) -> None:
        """Put the weights of these names, or of all, on `device`, patched, where they are offloaded."""
        for name in list(self._offloaded) if names is None else names:
            if name in self._offloaded:
                check()
                self._parameter(name).data = self.weight(name, device)
                self._offloaded.discard(name)
                _note_channels(self.module, name)

    def weight(self, name: str, device: torch.device | str) -> Tensor:
        """The patched weight on `device`, in the parameter's dtype, whether it is offloaded or not. To be read only."""
        if name not in self._offloaded:
            return self._parameter(name).data.to(device)
        return self._sum(name, tuple(patch for patch in self.patches if name in patch.offsets), device)

    def set(self, *patches: Patch) -> None:
        """Make the weights base + `patches`, in this order. What no change touches is left alone.

        If that is not done to the end (memory ran out, the job was cancelled) there are no patches any more: where
        there is a file behind the network, what was touched is offloaded, at once and without memory, else it is the
        base's again. Then the error is passed on.
        """
        if _same(patches, self.patches):
            return
        before, self.patches = self.patches, patches
        cached = self._from_cache(patches)
        self._cache(before, patches)
        try:
            for name, now in _changes(before, patches).items():
                check()
                self._write(name, now, cached.get(name))
        except BaseException:
            self.drop((*before, *patches))
            raise

    def drop(self, patches: Iterable[Patch] | None = None) -> None:
        """Have no patches any more, whatever has become of the weights that these, or those of now, touch.

        Never fails and takes no time: see `set`.
        """
        touched = _touched(self.patches if patches is None else patches)
        self.patches = ()
        self._cached.clear()
        if self._weights is not None:
            self.offload(touched)
            return
        for name in touched:
            self._write(name, ())

    def original(self, name: str, device: torch.device | str | None = None) -> Tensor:
        """The base's weight as it was loaded, in the parameter's dtype, on its device or another. To be read only."""
        parameter = self._parameter(name)
        device = device or parameter.device
        if self._weights is not None:
            return self._weights.read(parameter_key(name), parameter.dtype, device)
        return self._originals.get(name, parameter.data).to(device)

    def _parameter(self, name: str) -> nn.Parameter:
        found = self._parameters.get(name)
        return self.module.get_parameter(name) if found is None else found  # of one with two names the second

    def _cache(self, before: tuple[Patch, ...], patches: tuple[Patch, ...]) -> None:
        """Keep the patched weights that a change from `before` to `patches` takes off, if there is room for them."""
        changed = _changes(before, patches).keys() & _touched(before).keys() - self._offloaded
        weights = {name: self._parameter(name).data for name in changed}
        if weights and _bytes(weights.values()) <= self._reserve:
            self._make_room(_bytes(weights.values()))
            self._cached.append((before, weights))

    def _from_cache(self, patches: tuple[Patch, ...]) -> dict[str, Tensor]:
        """The weights that were kept when these patches were taken off; they are kept no longer."""
        for index, (cached, weights) in enumerate(self._cached):
            if _same(cached, patches):
                del self._cached[index]
                return weights
        return {}

    def _make_room(self, needed: int) -> None:
        """Let go of the longest kept weights until `needed` bytes of the reserve are free."""
        while self._cached and needed + sum(_bytes(w.values()) for _, w in self._cached) > self._reserve:
            del self._cached[0]

    @torch.no_grad()
    def _write(self, name: str, patches: tuple[Patch, ...], cached: Tensor | None = None) -> None:
        """Make a weight the base's plus `patches`; `cached` is that sum, if it fits the parameter as it is now."""
        if name in self._offloaded:
            return
        parameter = self._parameter(name)
        if patches and self._weights is None:
            self._originals.setdefault(name, self.original(name))
        if cached is None or cached.dtype != parameter.dtype or cached.device != parameter.device:
            cached = self._sum(name, patches, parameter.device)
        parameter.data = cached
        if not patches:
            self._originals.pop(name, None)
        _note_channels(self.module, name)

    def _sum(self, name: str, patches: tuple[Patch, ...], device: torch.device | str) -> Tensor:
        original = self.original(name, device)
        if not patches:
            return original
        total = original.to(torch.float32, copy=True)
        for patch in patches:
            for offset in patch.offsets[name]:
                total = offset.add_to(total, patch.strength)
        return total.to(original.dtype)


def misfits(patch: Patch, module: nn.Module) -> list[str]:
    """The parameters that `patch` names and the unpatched `module` does not have in a shape that fits."""
    shapes = {name: _base_shape(module, name, weight.shape) for name, weight in module.named_parameters()}
    return [
        name
        for name, offsets in patch.offsets.items()
        if name not in shapes or any(offset.shape(shapes[name]) is None for offset in offsets)
    ]


def _base_shape(module: nn.Module, name: str, shape: torch.Size) -> torch.Size:
    """A weight's shape in the unpatched network: only the first convolution's is changed by patches."""
    if name == CONV_IN:
        shape = torch.Size((shape[0], cast(Any, module.config)["in_channels"], *shape[2:]))
    return shape


def _changes(before: tuple[Patch, ...], after: tuple[Patch, ...]) -> dict[str, tuple[Patch, ...]]:
    """The weights that differ between two lists of patches, and the patches of the second that touch each."""
    changes: dict[str, tuple[Patch, ...]] = {}
    for name in _touched((*before, *after)):
        now = tuple(patch for patch in after if name in patch.offsets)
        if not _same(now, tuple(patch for patch in before if name in patch.offsets)):
            changes[name] = now
    return changes


def _bytes(weights: Iterable[Tensor]) -> int:
    return sum(weight.numel() * weight.element_size() for weight in weights)


def _touched(patches: Iterable[Patch]) -> dict[str, None]:
    return {name: None for patch in patches for name in patch.offsets}


def _same(ours: tuple[Patch, ...], theirs: tuple[Patch, ...]) -> bool:
    return len(ours) == len(theirs) and all(
        a is b or (a.offsets is b.offsets and a.strength == b.strength) for a, b in zip(ours, theirs, strict=True)
    )


def _note_channels(module: nn.Module, name: str) -> None:
    owner = module.get_submodule(name.rpartition(".")[0])
    if isinstance(owner, nn.Conv2d) and name.endswith(".weight"):
        owner.in_channels = owner.weight.shape[1] * owner.groups
