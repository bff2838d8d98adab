"""Collectives between the ranks of `torchrun`; no-ops in a single process."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor


def rank_and_world_size() -> tuple[int, int]:
    """The rank of this process and the number of processes; (0, 1) without a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def rows_of_rank(num_rows: int, rank: int | None = None, world_size: int | None = None) -> slice:
    """The contiguous share of `num_rows` rows that a rank holds; shares are in rank order.

    Args:
        num_rows: number of rows on all ranks together.
        rank, world_size: the rank, by default this process's.
    """
    if rank is None or world_size is None:
        rank, world_size = rank_and_world_size()
    return slice(num_rows * rank // world_size, num_rows * (rank + 1) // world_size)


def gather_rows(local: Tensor, num_rows: int) -> Tensor:
    """Gather rows from all ranks. No gradient flows through.

    Args:
        local: this rank's rows [rows_of_rank(num_rows), ...].
        num_rows: number of rows on all ranks together.

    Returns:
        [num_rows, ...], in rank order.
    """
    _, world_size = rank_and_world_size()
    if world_size == 1:
        return local
    shares = [rows_of_rank(num_rows, rank, world_size) for rank in range(world_size)]
    largest = max(share.stop - share.start for share in shares)
    padded = local.new_zeros((largest, *local.shape[1:]))
    padded[: len(local)] = local
    parts = [torch.empty_like(padded) for _ in shares]
    dist.all_gather(parts, padded)
    return torch.cat(
        [part[: share.stop - share.start] for part, share in zip(parts, shares, strict=True)]
    )


def sum_over_ranks(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its sum over the ranks, with one all-reduce for each dtype."""
    tensors = list(tensors)
    if rank_and_world_size()[1] == 1:
        return
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        group = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.reshape(-1) for tensor in group])
        dist.all_reduce(flat)
        for tensor, part in zip(group, flat.split([t.numel() for t in group]), strict=True):
            tensor.copy_(part.view_as(tensor))
