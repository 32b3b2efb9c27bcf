"""The optimizer: orthogonalised momentum (Muon) for matrices and convolutions, AdamW for the rest.

Muon (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks") replaces the momentum of a weight
matrix by the nearest matrix whose singular values are all about one, through five Newton-Schulz steps. On a CPU,
where a training run has few steps, each counts. Weights of one shape are stacked, so that a step is a few batched
products.
"""

from __future__ import annotations

from collections import defaultdict

import torch

from training.common import has_bfloat16

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonal(matrices: torch.Tensor, rounds: int = 5) -> torch.Tensor:
    """(N, rows, columns) -> about the nearest matrices with orthonormal rows or columns."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if tall else matrices
    x = x.bfloat16() if has_bfloat16() else x  # exact enough: the singular values come out between 0.7 and 1.2 anyway
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(rounds):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.transpose(1, 2) if tall else x).to(matrices)


class Muon(torch.optim.Optimizer):
    """Both optimizers in one: parameters of two or more dimensions by Muon, the others (and `plain` ones) by Adam.

    The learning rate is Adam's; Muon's is `ratio` times it.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        rate: float,
        *,
        ratio: float = 5.0,
        decay: float = 1e-2,
        plain: tuple[str, ...] = (),
    ) -> None:
        matrix, rest = [], []
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            small = min(parameter.shape[0], parameter[0].numel()) < 8 if parameter.ndim > 1 else True
            (rest if small or any(part in name for part in plain) else matrix).append(parameter)
        groups = [{"params": matrix, "muon": True, "scale": ratio}, {"params": rest, "muon": False, "scale": 1.0}]
        super().__init__(groups, {"lr": rate, "decay": decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            (self._muon if group["muon"] else self._adam)(parameters, group)

    def _muon(self, parameters: list[torch.nn.Parameter], group: dict) -> None:
        shapes: dict[tuple[int, int], list[torch.nn.Parameter]] = defaultdict(list)
        for parameter in parameters:
            shapes[(parameter.shape[0], parameter[0].numel())].append(parameter)
        for (rows, columns), alike in shapes.items():
            updates = []
            for parameter in alike:
                momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                momentum.lerp_(parameter.grad, 0.1)
                updates.append(parameter.grad.lerp(momentum, 0.9).reshape(rows, columns))
            rate = group["lr"] * max(1.0, rows / columns) ** 0.5
            for parameter, update in zip(alike, orthogonal(torch.stack(updates)), strict=True):
                parameter.mul_(1 - group["lr"] * group["decay"]).sub_(update.view_as(parameter), alpha=rate)

    def _adam(self, parameters: list[torch.nn.Parameter], group: dict) -> None:
        for parameter in parameters:
            state = self.state[parameter]
            if "count" not in state:
                state.update(count=0, first=torch.zeros_like(parameter), second=torch.zeros_like(parameter))
            state["count"] += 1
            first, second = state["first"].lerp_(parameter.grad, 0.1), state["second"].lerp_(parameter.grad**2, 0.01)
            count = state["count"]
            size = (second / (1 - 0.99**count)).sqrt_().add_(1e-8)
            parameter.addcdiv_(first, size, value=-group["lr"] / (1 - 0.9**count))
