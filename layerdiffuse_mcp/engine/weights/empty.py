"""Networks that are made without weights, to be filled with those of a file.

with without_weights():
    module = UNet2DConditionModel(**config)
module.load_state_dict(state, assign=True)
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import init
from torch.overrides import TorchFunctionMode

INITIALISERS = {init.uniform_, init.normal_, init.constant_, init.kaiming_uniform_}


class _Uninitialised(TorchFunctionMode):
    """Leaves tensors as they are where they would be initialised: on the meta device that takes long, for nothing."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in INITIALISERS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@contextmanager
def without_weights() -> Generator[None]:
    """Modules made in here have parameters on the meta device: shapes without values."""
    with torch.device("meta"), _Uninitialised():
        yield
