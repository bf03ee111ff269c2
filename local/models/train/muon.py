"""Muon: momentum whose update is made orthogonal, for matrices and convolutions; AdamW for everything else.

It needs about a third of the steps of AdamW here, which is what makes training on a CPU bearable.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed

# Embeddings and the first and last layers are left to AdamW: their rows are not a map between hidden spaces.
ADAM_NAMES = ("conv_in", "conv_out.", "embed", "time_emb")


def orthogonalise(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Brings all singular values of a matrix near one, by Newton-Schulz iteration."""
    result = matrix.bfloat16() if matrix.size(0) >= 64 else matrix.float()
    transposed = result.size(0) > result.size(1)
    if transposed:
        result = result.T
    result = result / (result.norm() + 1e-7)
    for _ in range(steps):
        square = result @ result.T
        result = 3.4445 * result + (-4.7750 * square + 2.0315 * square @ square) @ result
    return (result.T if transposed else result).float()


class Muon:
    """The optimizer; with several workers each orthogonalises a share of the matrices."""

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, torch.nn.Parameter]],
        learning_rate: float,
        adam_learning_rate: float,
        momentum: float = 0.95,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.matrices: list[torch.nn.Parameter] = []
        others = []
        for name, parameter in named_parameters:
            for_adam = parameter.ndim < 2 or any(part in name for part in ADAM_NAMES)
            (others if for_adam else self.matrices).append(parameter)
        self.learning_rate = learning_rate
        self.adam_learning_rate = adam_learning_rate
        self.momentum = momentum
        self.rank, self.world = rank, world
        self.averages = [torch.zeros_like(matrix) for matrix in self.matrices]
        self.adam = torch.optim.AdamW(others, lr=adam_learning_rate, betas=(0.9, 0.98), weight_decay=0.0)

    def zero_grad(self) -> None:
        for matrix in self.matrices:
            matrix.grad = None
        self.adam.zero_grad()

    def state_dict(self) -> dict:
        return {"averages": self.averages, "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        for average, saved in zip(self.averages, state["averages"], strict=True):
            average.copy_(saved)
        self.adam.load_state_dict(state["adam"])

    @torch.no_grad()
    def step(self, scale: float) -> None:
        """One step at `scale` times the learning rates."""
        for group in self.adam.param_groups:
            group["lr"] = self.adam_learning_rate * scale
        self.adam.step()
        updates = []
        for index, (matrix, average) in enumerate(zip(self.matrices, self.averages)):
            average.lerp_(matrix.grad, 1 - self.momentum)
            if index % self.world == self.rank:
                ahead = matrix.grad.lerp(average, self.momentum)  # Nesterov's look ahead
                update = orthogonalise(ahead.flatten(1))
                update *= max(1, update.size(0) / update.size(1)) ** 0.5
                updates.append(update.reshape(-1))
            else:
                updates.append(torch.zeros(matrix.numel()))
        flat = torch.cat(updates)
        if self.world > 1:
            torch.distributed.all_reduce(flat)
        position = 0
        for matrix in self.matrices:
            update = flat[position : position + matrix.numel()].view(matrix.shape)
            matrix.add_(update, alpha=-self.learning_rate * scale)
            position += matrix.numel()
