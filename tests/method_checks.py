"""What every method's test asks of it: gradients of one step of `fit`, and that files give it back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from families import CLASS_NAMES, tiny_backbone
from learner_references import penalty
from tiny_runs import cpu
from torch import Tensor

from cma_tune.data.batches import StoredBatches
from cma_tune.learners import Learner, PromptOutput, from_pretrained, save_prompt
from cma_tune.train import Recipe, fit

LABELS = torch.tensor([0, 3, 3, 1, 4, 2, 0])
"""Of made-up images of `families.CLASS_NAMES`, one and two a class."""


def images(seed: int = 0) -> Tensor:
    """Made-up image features ``[7, D]`` of unit length, one for each of `LABELS`."""
    generator = torch.Generator().manual_seed(seed)
    width = tiny_backbone("clip-vit").encode_texts(["a"]).shape[-1]
    features = torch.randn(len(LABELS), width, generator=generator, dtype=torch.float64)
    return features / features.norm(dim=1, keepdim=True)


def step(learner: Learner, features: Tensor, weight: float = 0.0) -> dict[str, Tensor]:
    """How one step of plain SGD with rate 1 on all images moves the parameters: their gradients."""
    before = {name: value.detach().clone() for name, value in learner.named_parameters()}
    recipe = Recipe(1, lr=1.0, warmup_lr=1.0, momentum=0.0, weight_decay=0.0, cma_weight=weight)
    fit(learner, StoredBatches(features[None], LABELS, len(LABELS), 0), recipe, cpu())
    return {name: before[name] - value.detach() for name, value in learner.named_parameters()}


def mixed(cross_entropy: Tensor, image: Tensor, text: Tensor, weight: float) -> Tensor:
    """(1−λ)·CE + λ·CMA with the paper's form of the penalty, by a loop over the classes."""
    if weight == 0:
        return cross_entropy
    return (1 - weight) * cross_entropy + weight * penalty(image, text, LABELS, release=False)


def cross_entropy_by_loop(logits: Tensor, labels: Tensor = LABELS) -> Tensor:
    """Mean of −ln p over the images, one at a time."""
    values = [
        torch.logsumexp(row, 0) - row[label] for row, label in zip(logits, labels.tolist(), strict=True)
    ]
    return torch.stack(values).mean()


def check_step(
    make: Callable[[], Learner],
    loss: Callable[[Learner], Tensor],
    weight: float,
    tolerance: float = 1e-10,
    least: float = 1e-6,
    given: Tensor | None = None,
) -> None:
    """One step of `fit` moves every parameter by the gradient of `loss`, which the test wrote.

    Args:
        make: the learner, the same at every call, in float64.
        loss: of the learner on `images()`; may use its parameters but none of its methods.
        weight: λ.
        tolerance: of the gradients.
        least: of the largest entry of every gradient; else the comparison would say nothing.
        given: what the learner is trained on instead of `images()`, such as pixels.
    """
    twin = make()
    names, parameters = zip(*twin.named_parameters(), strict=True)
    expected = torch.autograd.grad(loss(twin), parameters)
    moved = step(make(), images() if given is None else given, weight)
    for name, gradient in zip(names, expected, strict=True):
        assert gradient.abs().max() > least, name
        torch.testing.assert_close(moved[name], gradient, rtol=0, atol=tolerance, msg=name)


def check_files(learner: Learner, folder: Path, given: Tensor | None = None) -> Learner:
    """Saved and loaded it gives the same logits, frozen; returned for more questions.

    `given` are images in another form than `images()`, such as pixels.
    """
    for number, parameter in enumerate(learner.parameters()):
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
        parameter.data.add_(0.1 * noise.to(parameter))
    save_prompt(learner, folder)
    again = from_pretrained(folder, learner.backbone)
    assert type(again) is type(learner) and again.class_names == tuple(CLASS_NAMES)
    assert not any(parameter.requires_grad for parameter in again.parameters())
    assert again.describe() == learner.describe()
    features = images(5) if given is None else given
    ours: PromptOutput = again(features)
    for value, expected in zip(ours, learner(features), strict=True):
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-6)
    return again
