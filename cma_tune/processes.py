"""Rows of all processes in one tensor, with gradients."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def gather_rows(rows: Tensor) -> Tensor:
    r"""Concatenate the rows of all processes, in rank order, with gradients to every process.

    Without an initialised default process group, or with a group of one, ``rows`` itself comes back.
    Processes may hold different numbers of rows, 0 included. Every process must call this the same number of
    times in the same order, and run the backward pass if one does.

    Gradient convention: each process is expected to compute the *same* full loss from the gathered rows. The
    backward pass sums the gradients of all processes and returns each its own slice, which is the number of
    processes times the gradient of that one loss; **averaging** parameter gradients over processes, as
    DistributedDataParallel does, then gives exactly the gradient of a single process holding all rows.

    If the rows of any process require a gradient, all processes take part in the backward pass: a process
    whose own rows do not (an empty tensor made on the spot, say) gets a result that requires one too.

    Args:
        rows: ``[B, ...]``; B may differ between processes, the other dimensions and the dtype may not.

    Returns:
        ``[sum of B, ...]``, the same on every process.

    Raises:
        ValueError: ``rows`` has no dimensions, or its other dimensions differ between processes.

    Example:
        >>> gather_rows(torch.eye(2))  # one process
        tensor([[1., 0.],
                [0., 1.]])
    """
    if rows.ndim == 0:
        raise ValueError("Expected `rows` of shape [B, ...], got a scalar.")
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return rows
    differentiable = rows.requires_grad and torch.is_grad_enabled()
    sizes, any_differentiable = _exchange_sizes(rows, differentiable)
    if any_differentiable and not differentiable and torch.is_grad_enabled():
        # Its backward holds a collective: were this process to skip it, the others would wait for ever.
        rows = rows.detach().requires_grad_()
    gathered: Tensor = _GatherRows.apply(rows, sizes)
    return gathered


def _exchange_sizes(rows: Tensor, differentiable: bool) -> tuple[list[int], bool]:
    """Number of rows of each process, and whether any of them needs a gradient."""
    mine = torch.tensor(
        [rows.shape[0], int(differentiable), rows.shape[1:].numel()], dtype=torch.int64, device=rows.device
    )
    all_of_them = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(all_of_them, mine)
    table = torch.stack(all_of_them).tolist()
    widths = sorted({width for _, _, width in table})
    if len(widths) > 1:
        raise ValueError(f"Expected rows of one size on every process, got {widths} entries a row.")
    return [size for size, _, _ in table], any(flag for _, flag, _ in table)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: list[int]) -> Tensor:
        ctx.start = sum(sizes[: dist.get_rank()])
        ctx.rows = rows.shape[0]
        # Collectives want equal shapes: everyone pads to the largest, the padding is cut off again.
        padded = rows.new_zeros((max(sizes), *rows.shape[1:]))
        padded[: rows.shape[0]] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].contiguous().clone()  # all_reduce writes into it
        dist.all_reduce(total)
        return total[ctx.start : ctx.start + ctx.rows], None
