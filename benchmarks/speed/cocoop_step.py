"""CoCoOp's step, forward and backward: the plain path against the packed one.

python benchmarks/speed/cocoop_step.py --names FOLDER

Batch 1, 4 context tokens and 100 classes are the reference's setting for Caltech101.
"""

from __future__ import annotations

import torch
from speed_tools import (
    PRECISIONS,
    PlainPrompts,
    arguments,
    class_names,
    in_turns,
    leave,
    random_backbone,
)
from torch.nn.functional import cross_entropy, normalize

from cma_tune.learners import CoCoOp, CoOp
from cma_tune.learners.coop import ContextOptions


def main() -> None:
    """Measure batches of one and of four."""
    parser = arguments(__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--classes", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    backbone = random_backbone(options.model, options.device)
    names = class_names(options.classes, options.names, backbone)
    learner = CoCoOp(backbone, names, ContextOptions(4))
    plain = PlainPrompts(CoOp(backbone, names, ContextOptions(4)))
    autocast = PRECISIONS[options.precision]
    rows: list[dict[str, object]] = []
    for batch in (1, 4):
        generator = torch.Generator().manual_seed(0)
        images = normalize(torch.randn(batch, 512, generator=generator), dim=-1).to(options.device)
        labels = torch.arange(batch, device=options.device)

        def step(packed: bool, images: torch.Tensor = images, labels: torch.Tensor = labels) -> None:
            with torch.autocast(options.device, dtype=autocast, enabled=autocast is not None):
                contexts = learner.context + learner.meta_net(images)[:, None, :]
                text = None if packed else plain(contexts)
                cross_entropy(learner(images, text).logits, labels).backward()

        best = in_turns({"plain": lambda: step(False), "packed": lambda: step(True)}, options)
        rows.append(
            {
                "batch": batch,
                "classes": options.classes,
                "context tokens": 4,
                "plain s": best["plain"],
                "packed s": best["packed"],
                "times faster": best["plain"] / best["packed"],
            }
        )
        print(rows[-1], flush=True)
    leave("cocoop_step", options, rows)


if __name__ == "__main__":
    main()
