"""The classes split over processes: each encodes its share, all get the same features and gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from families import CLASS_NAMES, WIDTH, tiny_backbone
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from cma_tune.clip import context_prompts
from cma_tune.clip.backbone import Backbone, TextOptions
from cma_tune.clip.prompts import place_context
from cma_tune.learners import CoOp
from cma_tune.learners.coop import ContextOptions

CASES: dict[str, tuple[str, ContextOptions, int]] = {
    "shared": ("clip-vit", ContextOptions(3), 0),
    "per class": ("clip-vit", ContextOptions(3, "middle", per_class=True), 0),
    "in chunks": ("coca", ContextOptions(2, "front"), 1),
    "plain tower": ("siglip", ContextOptions(2), 2),
    "transformers": ("transformers-clip", ContextOptions(2), 0),
    "deep": ("clip-vit", ContextOptions(2), 0),
    "deep, per class, in chunks": ("transformers-clip", ContextOptions(2, "middle", per_class=True), 2),
}


class Deep(nn.Module):
    """Contexts among the embeddings and, others, before the second block."""

    def __init__(self, backbone: Backbone, names: Sequence[str], options: ContextOptions) -> None:
        super().__init__()
        layout = place_context(backbone.tokenizer, names, options.tokens, options.position)
        self.prompts = context_prompts.ContextPrompts(backbone, layout, options.per_class)
        classes = (len(names),) if options.per_class else ()
        shape = (2, 1, *classes, options.tokens, WIDTH)
        values = torch.randn(shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        self.context = nn.Parameter(values)

    def text_features(self) -> Tensor:
        """Features ``[C, D]``."""
        return self.prompts.encode(self.context[0], [self.context[1]], same_on_every_process=True)[0]


class Loss(nn.Module):
    """A loss of this process's rows whose mean over the processes is that of all rows."""

    def __init__(self, learner: CoOp | Deep) -> None:
        super().__init__()
        self.learner = learner

    def forward(self, rows: Tensor, processes: int) -> Tensor:
        logits = rows @ self.learner.text_features().T
        return logits.logsumexp(dim=1).sum() * processes


def learner(case: str, names: tuple[str, ...] = CLASS_NAMES, split: bool = False) -> CoOp | Deep:
    family, options, chunk = CASES[case]
    backbone = tiny_backbone(family)
    backbone.text_options = TextOptions(chunk=chunk, split_over_processes=split)
    if case.startswith("deep"):
        return Deep(backbone, names, options)
    made = CoOp(backbone, names, options, seed=4).double()
    with torch.no_grad():
        made.context.mul_(20)
    return made


def rows() -> Tensor:
    return torch.randn(6, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def worker(rank: int, folder: str, processes: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=processes)
    results: dict[str, Any] = {}
    for case in CASES:
        encoded: list[int] = []
        encode = context_prompts.ContextPrompts._encode

        def counted(
            self: Any, part: Any, *inputs: Tensor, encode: Any = encode, encoded: list[int] = encoded
        ) -> Tensor:
            if not torch.is_grad_enabled():
                encoded.append(len(part.classes))
            features: Tensor = encode(self, part, *inputs)
            return features

        context_prompts.ContextPrompts._encode = counted  # type: ignore
        made = learner(case, split=True)
        with torch.no_grad():
            features = made.text_features()
        context_prompts.ContextPrompts._encode = encode  # type: ignore[method-assign]
        model = DistributedDataParallel(Loss(made))
        torch.autograd.backward(model(rows()[rank::processes], processes))
        results[case] = {"features": features, "gradient": made.context.grad, "encoded": sum(encoded)}
    # Fewer classes than processes: nobody goes without.
    results["few"] = learner("shared", CLASS_NAMES[:1], split=True).text_features().detach()
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(autouse=True)
def _options_as_before() -> Iterator[None]:
    """Other tests share these backbones."""
    backbones = [tiny_backbone(family) for family, _, _ in CASES.values()]
    before = [backbone.text_options for backbone in backbones]
    yield
    for backbone, options in zip(backbones, before, strict=True):
        backbone.text_options = options


@pytest.mark.parametrize("processes", [3])  # not a divisor of five classes
def test_processes_share_the_classes_exactly(processes: int, tmp_path: Path) -> None:
    spawn(worker, (str(tmp_path), processes), nprocs=processes)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(processes)]
    for case in CASES:
        alone = learner(case)
        expected = alone.text_features().detach()
        torch.autograd.backward(Loss(alone)(rows(), 1))
        gradient = alone.context.grad
        assert gradient is not None and gradient.abs().max() > 1e-3
        for one in found:
            torch.testing.assert_close(one[case]["features"], expected, rtol=0, atol=1e-12)
            torch.testing.assert_close(one[case]["gradient"], gradient, rtol=0, atol=1e-12)
        shares = [one[case]["encoded"] for one in found]
        assert sum(shares) == len(CLASS_NAMES) and max(shares) - min(shares) <= 1
    single = learner("shared", CLASS_NAMES[:1]).text_features().detach()
    assert all(torch.allclose(one["few"], single, rtol=0, atol=1e-12) for one in found)
