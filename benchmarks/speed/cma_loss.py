"""The CMA loss, forward and backward: ours against the loop over classes with ``eigh``.

python benchmarks/speed/cma_loss.py
"""

from __future__ import annotations

from functools import partial

import torch
from speed_options import leave, parse, timing_options
from speed_tools import in_turns
from torch import Tensor

from cma_tune.losses import cross_modal_entropy


def loop(images: Tensor, texts: Tensor, labels: Tensor) -> Tensor:
    """The paper's form as one would write it: class by class."""
    total = images.new_zeros((), dtype=torch.float32)
    for label in labels.unique():
        group = torch.cat([images[labels == label], texts[label][None]]).float()
        rows = torch.nn.functional.normalize(group, dim=-1)
        shares = torch.linalg.eigh(rows @ rows.T / len(rows))[0].clamp(min=1e-12)
        total = total - (shares * shares.log()).sum()
    return total


def main() -> None:
    """Print one line per setting."""
    options = parse(timing_options(__doc__.splitlines()[0] if __doc__ else "", repeats=5))
    rows: list[dict[str, object]] = []
    for batch, classes, width in ((32, 100, 512), (128, 100, 512), (128, 100, 1024), (448, 10, 512)):
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(batch, width, generator=generator).to(options.device).requires_grad_()
        texts = torch.randn(classes, width, generator=generator).to(options.device).requires_grad_()
        labels = torch.randint(classes, (batch,), generator=generator).to(options.device)
        torch.testing.assert_close(cross_modal_entropy(images, texts, labels), loop(images, texts, labels))

        def step(loss: object, inputs: tuple[Tensor, Tensor, Tensor] = (images, texts, labels)) -> None:
            value = loss(*inputs)  # type: ignore[operator]
            torch.autograd.grad(value, inputs[:2])

        best = in_turns({"loop": partial(step, loop), "ours": partial(step, cross_modal_entropy)}, options)
        rows.append(
            {
                "batch": batch,
                "classes": classes,
                "width": width,
                "loop ms": 1e3 * best["loop"],
                "ours ms": 1e3 * best["ours"],
                "times faster": best["loop"] / best["ours"],
            }
        )
    leave("cma_loss", options, rows)


if __name__ == "__main__":
    main()
