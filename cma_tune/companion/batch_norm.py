"""BatchNorm over the global batch, on any device and for any number of rows a process."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cma_tune.errors import UserError

AnyModule = TypeVar("AnyModule", bound=nn.Module)


class _SumOverProcesses(torch.autograd.Function):
    """All-reduce whose backward is an all-reduce: a part gets what all processes made of the sum."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total


def _normalise(norm: _BatchNorm, input: Tensor) -> Tensor:
    """``[B, C, ...]`` with the statistics of all processes' rows, in float32 at least."""
    with torch.autocast(input.device.type, enabled=False):
        x = input if input.dtype == torch.float64 else input.float()
        over = [0, *range(2, x.dim())]
        shape = [-1] + [1] * (x.dim() - 2)
        entries = torch.tensor([x.numel() // x.shape[1]], dtype=x.dtype, device=x.device)
        sums: Tensor = _SumOverProcesses.apply(torch.cat([x.sum(dim=over), entries]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        # A second pass: the difference of large sums would lose what small variances hold.
        centred = x - mean.view(shape)
        squares: Tensor = _SumOverProcesses.apply(centred.square().sum(dim=over))
        if norm.track_running_stats:
            _track(norm, mean.detach(), squares.detach() / (count - 1).clamp(min=1))
        out = centred * torch.rsqrt(squares / count + norm.eps).view(shape)
        if norm.affine:
            out = out * norm.weight.view(shape) + norm.bias.view(shape)
    return out.to(input.dtype)


def _track(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Move the running statistics towards the batch's, as torch does: the variance is the unbiased one."""
    assert norm.running_mean is not None and norm.running_var is not None
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked += 1
    share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean), share)
    norm.running_var.lerp_(variance.to(norm.running_var), share)


def _spans_processes(norm: nn.Module) -> bool:
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    return several and norm.training


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` whose batch is that of all processes.

    torch.nn.SyncBatchNorm does the same on GPUs alone. Gradients follow `cma_tune.processes.gather_rows`:
    every process computes the same loss of the whole batch, so what reaches the activations is the number of
    processes times its gradient; the backward pass of the statistics is linear in that and keeps the factor,
    which averaging the parameters' gradients takes away. All processes must take part in every training
    step; one may have no rows.
    """

    def forward(self, input: Tensor) -> Tensor:
        """``[B, C, H, W]``, normalised over all but C."""
        return _normalise(self, input) if _spans_processes(self) else super().forward(input)


class GlobalBatchNorm1d(nn.BatchNorm1d):
    """The same for ``[B, C]`` and ``[B, C, L]``."""

    def forward(self, input: Tensor) -> Tensor:
        """``[B, C]`` or ``[B, C, L]``, normalised over all but C."""
        return _normalise(self, input) if _spans_processes(self) else super().forward(input)


class GlobalBatchNormAct2d(GlobalBatchNorm2d):
    """The same for timm's norm that holds the activation after it, as ``drop`` and ``act``."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        """``[B, C, H, W]``, normalised over all but C, then activated."""
        out: Tensor = self.act(self.drop(super().forward(input)))
        return out


GLOBAL: dict[str, type[_BatchNorm]] = {
    "BatchNorm1d": GlobalBatchNorm1d,
    "BatchNorm2d": GlobalBatchNorm2d,
    "BatchNormAct2d": GlobalBatchNormAct2d,
}


def synchronise_batch_norm(module: AnyModule) -> AnyModule:
    """Let every BatchNorm in `module` take its statistics over all processes' rows.

    It is changed in place: parameters and buffers stay the same objects, under the same names. With one
    process the result is torch's own.

    Raises:
        UserError: `module` has a kind of BatchNorm that cannot be spread over processes.
    """
    for norm in list(module.modules()):
        if not isinstance(norm, _BatchNorm) or type(norm) in GLOBAL.values():
            continue
        kind = type(norm).__name__
        if kind not in GLOBAL:
            raise UserError(
                f"Expected norms out of {', '.join(GLOBAL)} for several processes, got {kind}: train in one "
                "process, or take another network."
            )
        # State, hooks and all else stay what they are; only where the statistics come from is new.
        norm.__class__ = GLOBAL[kind]
    return module
