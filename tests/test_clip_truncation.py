"""Whatever the class names and the context: the shortened text tower gives what the whole one gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import FAMILIES, own_text_features, reference_embeddings, tiny_backbone
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cma_tune.clip.backbone import Backbone, TextOptions
from cma_tune.clip.prompts import place_context
from cma_tune.learners import CoOp
from cma_tune.learners.coop import ContextLearner, ContextOptions

torch.set_num_threads(1)

WORDS = ("cat", "dog", "striped", "red", "triangle", "forest", "F-16A/B", "x")
NAMES = st.lists(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=2).map(" ".join), min_size=1, max_size=5
)


def full_length_text_features(backbone: Backbone, learner: ContextLearner, context: Tensor) -> Tensor:
    """Class embeddings ``[C, D]`` through the model's whole tower at full length, prompt by prompt."""
    options = learner.options
    layout = place_context(backbone.tokenizer, learner.class_names, options.tokens, options.position)
    features = []
    for c, ids in enumerate(layout.ids):
        rows = list(reference_embeddings(backbone, ids))
        for m, slot in enumerate(layout.slots[c].tolist()):
            rows[slot] = context[c, m] if options.per_class else context[m]
        features.append(own_text_features(backbone, ids[None], torch.stack(rows)[None])[0])
    return nn.functional.normalize(torch.stack(features), dim=-1)


@settings(max_examples=120, deadline=None)
@given(
    family=st.sampled_from(sorted(FAMILIES)),
    names=NAMES,
    tokens=st.integers(1, 4),
    position=st.sampled_from(["end", "middle", "front"]),
    per_class=st.booleans(),
    share_prefix=st.booleans(),
    chunk=st.sampled_from([0, 1, 2, 3]),
    seed=st.integers(0, 2**16),
)
def test_truncated_equals_full(
    family: str,
    names: list[str],
    tokens: int,
    position: Any,
    per_class: bool,
    share_prefix: bool,
    chunk: int,
    seed: int,
) -> None:
    backbone = tiny_backbone(family)
    learner = CoOp(backbone, names, ContextOptions(tokens, position, per_class), seed=seed).double()
    with torch.no_grad():
        learner.context.mul_(20)  # as large as the tiny model's own embeddings
    before = backbone.text_options
    backbone.text_options = TextOptions(share_prefix, chunk)
    try:
        ours = learner.text_features()
    finally:
        backbone.text_options = before
    reference = full_length_text_features(backbone, learner, learner.context)
    assert float((ours - reference).detach().abs().max()) <= 1e-12
    weights = torch.randn(ours.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((ours * weights).sum(), learner.context)
    (expected,) = torch.autograd.grad((reference * weights).sum(), learner.context)
    assert float((gradient - expected).abs().max()) <= 1e-12 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize(("position", "tokens"), [("end", 4), ("end", 16), ("middle", 4), ("front", 4)])
def test_a_real_backbone(shared: Any, position: Any, tokens: int) -> None:
    """The same in single precision, on the natural-image backbone and the names of Caltech101."""
    folder = shared / "backbones" / "lite-clip"
    names_file = shared / "data" / "classnames" / "caltech101.txt"
    if not folder.is_dir() or not names_file.is_file():
        pytest.skip(f"needs {folder} and {names_file}")
    backbone = real_backbone(str(folder))
    names = names_file.read_text(encoding="utf-8").split("\n")[:100]
    learner = CoOp(backbone, names, ContextOptions(tokens, position))
    # The field's figures for Caltech101: with start and end, the longest prompt has 22 tokens, or 10.
    assert learner.prompts.length == {16: 22, 4: 10}[tokens]
    few = names[::10]
    learner = CoOp(backbone, few, ContextOptions(tokens, position), context=learner.context)
    with torch.no_grad():
        reference = full_length_text_features(backbone, learner, learner.context)
        assert float((learner.text_features() - reference).abs().max()) <= 1e-5


_REAL: dict[str, Backbone] = {}


def real_backbone(folder: str) -> Backbone:
    """The backbone in `folder`, loaded once."""
    from cma_tune.clip.backbone import load_backbone

    if folder not in _REAL:
        _REAL[folder] = load_backbone(f"local-dir:{folder}")
    return _REAL[folder]
