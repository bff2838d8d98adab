"""Collectives between the ranks of `torchrun`; no-ops in a single process."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor


def rank_and_world_size() -> tuple[int, int]:
    """This process's rank and how many there are."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def rows_of_rank(number: int, rank: int | None = None, world_size: int | None = None) -> slice:
    """A rank's share of `number` rows: contiguous, in the order of ranks."""
    if rank is None or world_size is None:
        rank, world_size = rank_and_world_size()
    return slice(number * rank // world_size, number * (rank + 1) // world_size)


def gather_rows(local: Tensor, number: int) -> Tensor:
    """All `number` rows, of which each rank holds its `rows_of_rank`; no gradient flows through."""
    _, world_size = rank_and_world_size()
    if world_size == 1:
        return local
    shares = [rows_of_rank(number, rank, world_size) for rank in range(world_size)]
    largest = max(share.stop - share.start for share in shares)
    padded = local.new_zeros((largest, *local.shape[1:]))
    padded[: len(local)] = local
    parts = [torch.empty_like(padded) for _ in shares]
    dist.all_gather(parts, padded)
    return torch.cat(
        [part[: share.stop - share.start] for part, share in zip(parts, shares, strict=True)]
    )


def sum_over_ranks(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its sum over the ranks, in one message for each type of number."""
    tensors = list(tensors)
    if rank_and_world_size()[1] == 1:
        return
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        group = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.reshape(-1) for tensor in group])
        dist.all_reduce(flat)
        for tensor, part in zip(group, flat.split([t.numel() for t in group]), strict=True):
            tensor.copy_(part.view_as(tensor))
