"""The interplay losses, forward and backward: ours against three N×N ``eigh`` under plain autograd.

python benchmarks/speed/interplay_losses.py

Each side is forward and backward. The loss is −MI + |ΔH|, and |ΔH| alone, which the plain side makes of two
N×N. "eigh alone" is the ratio of the two sides' eigendecompositions for the whole loss by themselves, of the
matrices that occur: three of N×N against one, one of the smaller of N and D, one of the classes. ``--step``
measures a training step of WRN-28-2 too, which on a CPU takes some minutes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from itertools import product

import torch
from speed_options import PRECISIONS, leave, parse, precision_option, timing_options
from speed_tools import in_turns
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from cma_tune.companion.networks import network
from cma_tune.losses import EntropyDifferenceLoss, InterplayLoss

ROWS, WIDTHS, CLASSES = (64, 448), (128, 512), (10, 100)
STEPS = {"supervised": (64, 64), "semi-supervised": (64 + 2 * 448, 64 + 448)}
"""Images that a step of the recipe takes, and rows of its interplay losses."""

QUICK_STEPS = {"supervised": (8, 8), "semi-supervised": (8 + 2 * 16, 8 + 16)}
LOSS = InterplayLoss(mutual_information_weight=1.0, entropy_difference_weight=1.0)
DIFFERENCE = EntropyDifferenceLoss()
FLOORS = {torch.float32: 1e-7, torch.float64: 1e-12}


def grams(features: Tensor, classifier: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Of the features and of their classes' rows, both N×N."""
    unit, rows = normalize(features, dim=-1), normalize(classifier[labels], dim=-1)
    return unit @ unit.T, rows @ rows.T


def entropy(gram: Tensor) -> Tensor:
    """As one would write it, with the gradient of ``eigh``."""
    shares = torch.linalg.eigh(gram / len(gram))[0].clamp(min=FLOORS[gram.dtype])
    return -(shares * shares.log()).sum()


def plain(features: Tensor, classifier: Tensor, labels: Tensor) -> Tensor:
    """−MI + |ΔH| from three N×N matrices, whatever the classes."""
    of_features, of_rows = grams(features, classifier, labels)
    first, second, joint = entropy(of_features), entropy(of_rows), entropy(of_features * of_rows)
    return (first - second).abs() - (first + second - joint)


def plain_difference(features: Tensor, classifier: Tensor, labels: Tensor) -> Tensor:
    """|ΔH| from two."""
    of_features, of_rows = grams(features, classifier, labels)
    return (entropy(of_features) - entropy(of_rows)).abs()


def ours(features: Tensor, classifier: Tensor, labels: Tensor) -> Tensor:
    """The same from the smallest problems."""
    value: Tensor = LOSS(features, classifier, labels).loss
    return value


def batch(
    rows: int, width: int, classes: int, dtype: torch.dtype, device: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Features, classifier and labels at random."""
    generator = torch.Generator().manual_seed(0)
    features, classifier = (
        torch.randn(size, width, generator=generator, dtype=torch.float64).to(device, dtype).requires_grad_()
        for size in (rows, classes)
    )
    return features, classifier, torch.randint(classes, (rows,), generator=generator).to(device)


def step(loss: object, inputs: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Value and gradients."""
    value = loss(*inputs)  # type: ignore[operator]
    return value, *torch.autograd.grad(value, inputs[:2])


def difference(inputs: tuple[Tensor, Tensor, Tensor]) -> float:
    """Largest difference of the two sides in values and gradients."""
    sides = ((plain, ours), (plain_difference, DIFFERENCE))
    pairs = [
        pair for theirs, mine in sides for pair in zip(step(theirs, inputs), step(mine, inputs), strict=True)
    ]
    return max((one - other).abs().max().item() for one, other in pairs)


@torch.no_grad()
def problems(inputs: tuple[Tensor, Tensor, Tensor], ours: bool) -> list[Tensor]:
    """The matrices that a side takes apart."""
    features, classifier, labels = inputs
    of_features, of_rows = grams(*inputs)
    joint = of_features * of_rows
    if not ours:
        return [of_features, of_rows, joint]
    unit = normalize(features, dim=-1)
    classes, counts = labels.unique(return_counts=True)
    rows = normalize(classifier[classes], dim=-1) * counts.sqrt()[:, None]
    small = of_features if len(unit) <= unit.shape[1] else unit.T @ unit
    return [small, rows @ rows.T, joint]


def decompose(matrices: Sequence[Tensor]) -> None:
    """Their eigendecompositions, and nothing else."""
    for matrix in matrices:
        torch.linalg.eigh(matrix)


def losses(options: argparse.Namespace) -> list[dict[str, object]]:
    """One line per setting, after a check that both sides agree to 1e-6 in float64."""
    lines: list[dict[str, object]] = []
    settings = [(64, 128, 10)] if options.quick else list(product(ROWS, WIDTHS, CLASSES))
    for rows, width, classes in settings:
        apart = difference(batch(rows, width, classes, torch.float64, options.device))
        if not apart <= 1e-6:
            raise SystemExit(f"The two sides differ by {apart:.1e} at {rows} rows.")
        for dtype in (torch.float32, torch.float64):
            inputs = batch(rows, width, classes, dtype, options.device)
            best = in_turns(
                {
                    "plain": partial(step, plain, inputs),
                    "ours": partial(step, ours, inputs),
                    "plain ΔH": partial(step, plain_difference, inputs),
                    "our ΔH": partial(step, DIFFERENCE, inputs),
                    "plain's": partial(decompose, problems(inputs, ours=False)),
                    "ours'": partial(decompose, problems(inputs, ours=True)),
                },
                options,
            )
            lines.append(
                {
                    "rows": rows,
                    "width": width,
                    "classes": classes,
                    "dtype": str(dtype).removeprefix("torch."),
                    "plain ms": 1e3 * best["plain"],
                    "ours ms": 1e3 * best["ours"],
                    "times faster": best["plain"] / best["ours"],
                    "plain ΔH ms": 1e3 * best["plain ΔH"],
                    "our ΔH ms": 1e3 * best["our ΔH"],
                    "ΔH, times faster": best["plain ΔH"] / best["our ΔH"],
                    "eigh alone, times faster": best["plain's"] / best["ours'"],
                    "difference in float64": apart,
                }
            )
    return lines


def training_steps(options: argparse.Namespace) -> list[dict[str, object]]:
    """What the losses add to a step of WRN-28-2: supervised, and one of FreeMatch's size."""
    lines: list[dict[str, object]] = []
    model = network("wrn-28-2", classes=10).to(options.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9, nesterov=True)
    precision = PRECISIONS[options.precision]
    for name, (images_in_all, rows) in (QUICK_STEPS if options.quick else STEPS).items():
        images = torch.randn(images_in_all, 3, 32, 32, device=options.device)
        labels = torch.randint(10, (images_in_all,), device=options.device)
        inputs = batch(rows, 128, 10, torch.float32, options.device)
        best = in_turns(
            {
                "step": partial(train, model, optimizer, images, labels, precision),
                "losses": partial(step, ours, inputs),
            },
            options,
        )
        lines.append(
            {
                "step": name,
                "images": images_in_all,
                "rows": rows,
                "step without, ms": 1e3 * best["step"],
                "losses ms": 1e3 * best["losses"],
                "losses, % of the step": 100 * best["losses"] / (best["step"] + best["losses"]),
            }
        )
    return lines


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    precision: torch.dtype | None,
) -> None:
    """One step without the interplay losses."""
    with torch.autocast(images.device.type, dtype=precision, enabled=precision is not None):
        logits = model(images).logits
    loss = cross_entropy(logits.float(), labels)
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    optimizer.step()


def main() -> None:
    """Print one line per setting."""
    parser = timing_options(__doc__.splitlines()[0] if __doc__ else "")
    precision_option(parser)
    parser.add_argument("--step", action="store_true", help="measure WRN-28-2's training step too")
    parser.add_argument("--quick", action="store_true", help="small sizes, measured once: does it run?")
    options = parse(parser)
    torch.manual_seed(0)
    leave("interplay_losses", options, losses(options))
    if options.step:
        leave("interplay_step", options, training_steps(options))


if __name__ == "__main__":
    main()
