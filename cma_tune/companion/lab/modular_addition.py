"""Modular addition and a one-layer transformer for it: the task on which grokking is seen.

Source of the task: Power et al., "Grokking: generalization beyond overfitting on small algorithmic datasets"
(2022); of the network's form: Nanda et al., "Progress measures for grokking via mechanistic interpretability"
(2023).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, nll_loss, relu, scaled_dot_product_attention

from cma_tune.companion.networks import Network, Output
from cma_tune.data.images import generator_seed


def all_sums(modulus: int) -> tuple[Tensor, Tensor]:
    """Every pair (a, b), ``[p², 2]``, a before b, and (a + b) mod p, ``[p²]``; int64."""
    pairs = torch.cartesian_prod(torch.arange(modulus), torch.arange(modulus))
    return pairs, pairs.sum(dim=1) % modulus


def train_positions(modulus: int, share: float, seed: int) -> list[int]:
    """Which of the p² sums are trained on: a random `share` of them, ascending; the rest is the test set."""
    generator = torch.Generator().manual_seed(generator_seed("sums", seed, modulus))
    order = torch.randperm(modulus**2, generator=generator)
    return sorted(order[: round(share * modulus**2)].tolist())


class AdditionTransformer(Network):
    """One transformer layer without LayerNorm that reads the tokens a, b and = and answers at the last one.

    Only the last position's answer is asked for, and it attends to all three, so nothing is computed for the
    others but their keys and values. Weights start from a normal distribution of deviation 1/√width, which
    is this package's choice; the MLP alone has biases, which start at 0.

    Args:
        modulus: p; there are p + 1 tokens and p answers.
        width: D of the residual stream.
        heads: of attention; divides `width`.
        hidden: of the MLP.
    """

    TOKENS = 3

    def __init__(self, modulus: int, width: int = 128, heads: int = 4, hidden: int = 512) -> None:
        super().__init__()
        self.modulus, self.width, self.heads = modulus, width, heads
        self.tokens = nn.Parameter(torch.empty(modulus + 1, width))
        self.positions = nn.Parameter(torch.empty(self.TOKENS, width))
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.attended = nn.Linear(width, width, bias=False)
        self.inner = nn.Linear(width, hidden)
        self.outer = nn.Linear(hidden, width)
        self.classifier = nn.Linear(width, modulus, bias=False)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=1 / math.sqrt(width))
            else:
                nn.init.zeros_(parameter)

    def forward(self, pairs: Tensor) -> Output:
        """Pairs ``[N, 2]`` to logits ``[N, p]`` and the last position's residual ``[N, D]``."""
        equals = pairs.new_full((len(pairs), 1), self.modulus)
        stream = self.tokens[torch.cat([pairs, equals], dim=1)] + self.positions  # [N, 3, D]
        last = stream[:, -1]
        mixed = scaled_dot_product_attention(
            self._by_head(self.query(last[:, None])),
            self._by_head(self.key(stream)),
            self._by_head(self.value(stream)),
        )  # [N, heads, 1, D / heads]
        last = last + self.attended(mixed.reshape(len(pairs), self.width))
        last = last + self.outer(relu(self.inner(last)))
        return Output(self.classifier(last), last)

    def _by_head(self, rows: Tensor) -> Tensor:
        """``[N, positions, D]`` to ``[N, heads, positions, D / heads]``."""
        return rows.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def addition_loss(logits: Tensor, answers: Tensor) -> Tensor:
    """Mean cross-entropy with the log-softmax in float64.

    In float32 it stops at rounding long before the weights have settled, and its gradient with it.

    Args:
        logits: ``[N, p]``.
        answers: ``[N]``.
    """
    return nll_loss(log_softmax(logits.double(), dim=-1), answers)
