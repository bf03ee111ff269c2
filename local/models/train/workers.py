"""Data-parallel training on the cores of one machine.

Each worker is a process with a single thread, and the workers average their gradients. On a machine that is
shared with other work this is much steadier than one process with many threads: threads of one operation
wait for each other many times a step, processes only once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.distributed
import torch.multiprocessing


def launch(function: Callable[..., None], arguments: object, count: int = 2) -> None:
    """Runs `function(rank, count, arguments)` in `count` processes and waits for them."""
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    os.environ["MASTER_PORT"] = str(29000 + os.getpid() % 900)
    torch.multiprocessing.spawn(_run, (function, count, arguments), count)


def _run(rank: int, function: Callable[..., None], count: int, arguments: object) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=count)
    function(rank, count, arguments)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def average_gradients(parameters: Iterable[torch.nn.Parameter], extra: Sequence[float] = ()) -> list[float]:
    """Averages the gradients, and a few numbers that are returned, over the workers in one exchange."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients] + [torch.tensor(extra, dtype=torch.float32)])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    position = 0
    for gradient in gradients:
        gradient.copy_(flat[position : position + gradient.numel()].view_as(gradient))
        position += gradient.numel()
    return flat[position:].tolist()
