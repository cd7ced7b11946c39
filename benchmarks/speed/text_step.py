"""CoOp's text step, forward and backward: the plain path against the packed one, time and memory.

python benchmarks/speed/text_step.py

The plain path is the reference's: all 77 tokens of every class. Above 400 classes it runs in chunks of 100,
recomputed in the backward pass, as it must in order to fit this machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from speed_options import PRECISIONS, leave, numbers, parse, step_options
from speed_tools import (
    PlainPrompts,
    in_chunks,
    in_turns,
    memory,
    print_memory,
    random_backbone,
    real_names,
)

from cma_tune.clip.backbone import TextOptions
from cma_tune.learners import CoOp
from cma_tune.learners.coop import ContextOptions

WHOLE = 400
CHUNK = 100


def make(
    options: argparse.Namespace, classes: int, tokens: int, chunk: int = 0
) -> dict[str, Callable[[], object]]:
    """Forward and backward of both sides, checked to give the same gradient where that is cheap."""
    backbone = random_backbone(options.model, options.device)
    backbone.text_options = TextOptions(chunk=chunk)
    learner = CoOp(backbone, real_names(classes), ContextOptions(tokens))
    plain = PlainPrompts(learner)
    with torch.no_grad():
        shape = learner.text_features().shape
    cotangent = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(options.device)
    autocast = PRECISIONS[options.precision]

    def under_autocast(step: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            with torch.autocast(options.device, dtype=autocast, enabled=autocast is not None):
                step()

        return run

    def whole() -> None:
        features = in_chunks(plain, learner.context, classes, classes if classes <= WHOLE else CHUNK)
        (features * cotangent).sum().backward()

    def packed() -> None:
        (learner.text_features() * cotangent).sum().backward()

    sides: dict[str, Callable[[], object]] = {
        "plain": under_autocast(whole),
        "packed": under_autocast(packed),
    }
    if classes <= 10:
        gradients: list[torch.Tensor] = []
        for step in sides.values():
            learner.context.grad = None
            step()
            assert learner.context.grad is not None
            gradients.append(learner.context.grad.clone())
        tolerance = 1e-4 if autocast is None else 0.1
        assert (gradients[0] - gradients[1]).norm() <= tolerance * gradients[0].norm()
    return sides


def main() -> None:
    """Measure all settings, or the memory of one."""
    parser = step_options(__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--classes", type=numbers, default=[10, 100, 397, 1000])
    parser.add_argument("--tokens", type=numbers, default=[4, 16])
    parser.add_argument("--text-chunk", type=int, default=0, help="of the packed side under --memory-of")
    options = parse(parser)
    if options.memory_of:
        print_memory(make(options, options.classes[0], options.tokens[0], options.text_chunk), options)
        return
    rows: list[dict[str, object]] = []
    for tokens in options.tokens:
        for classes in options.classes:
            best = in_turns(make(options, classes, tokens), options)
            settings = ("--model", options.model, "--classes", str(classes), "--tokens", str(tokens))
            # Where the plain path needs chunks, its memory is theirs and says nothing.
            plain = memory(options, "plain", *settings) if classes <= WHOLE else None
            packed = memory(options, "packed", *settings)
            chunked = memory(options, "packed", *settings, "--text-chunk", "128")
            rows.append(
                {
                    "context tokens": tokens,
                    "classes": classes,
                    "plain s": best["plain"],
                    "packed s": best["packed"],
                    "times faster": best["plain"] / best["packed"],
                    "plain GB": plain,
                    "packed GB": packed,
                    "packed GB, chunk 128": chunked,
                    "plain in chunks of": None if classes <= WHOLE else CHUNK,
                }
            )
            print(rows[-1], flush=True)
    leave("text_step", options, rows)


if __name__ == "__main__":
    main()
