"""CMA loss, forward and backward: ours against the loop over classes with ``eigh``, measured in one run.

python benchmarks/speed/cma_loss.py
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from cma_tune.losses import cross_modal_entropy

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def loop(images: Tensor, texts: Tensor, labels: Tensor) -> Tensor:
    """The paper's form as one would write it: class by class."""
    total = images.new_zeros(())
    for label in labels.unique():
        rows = torch.nn.functional.normalize(torch.cat([images[labels == label], texts[label][None]]), dim=-1)
        shares = torch.linalg.eigh(rows @ rows.T / len(rows))[0].clamp(min=1e-12)
        total = total - (shares * shares.log()).sum()
    return total


def seconds(loss: Loss, images: Tensor, texts: Tensor, labels: Tensor, repeats: int = 15) -> float:
    """Least CPU time of a step: other work on the machine only ever adds to it."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        torch.autograd.grad(loss(images, texts, labels), (images, texts))
        times.append(time.process_time() - start)
    return min(times)


def main() -> None:
    """Print one line per setting."""
    torch.set_num_threads(1)
    print(f"{'batch':>6}{'classes':>9}{'width':>7}{'loop ms':>10}{'ours ms':>10}{'ratio':>8}")
    for batch, classes, width in ((32, 100, 512), (128, 100, 512), (128, 100, 1024), (448, 10, 512)):
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(batch, width, generator=generator, requires_grad=True)
        texts = torch.randn(classes, width, generator=generator, requires_grad=True)
        labels = torch.randint(classes, (batch,), generator=generator)
        torch.testing.assert_close(cross_modal_entropy(images, texts, labels), loop(images, texts, labels))
        slow = seconds(loop, images, texts, labels)
        fast = seconds(cross_modal_entropy, images, texts, labels)
        print(f"{batch:6}{classes:9}{width:7}{1e3 * slow:10.2f}{1e3 * fast:10.2f}{slow / fast:8.1f}")


if __name__ == "__main__":
    main()
