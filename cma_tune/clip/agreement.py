"""Whether tokenizer, text tower and model belong together, asked before anything is learned on them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from cma_tune.clip.prompts import PromptTokenizer
from cma_tune.clip.text_tower import NativeTextTower, TextTower
from cma_tune.clip.transformers_text import features_of, is_transformers_model
from cma_tune.errors import UserError


def check_agreement(model: nn.Module, tower: TextTower, tokenizer: PromptTokenizer, name: str) -> None:
    """Refuse what would give other features than the model's own, or none that mean anything.

    Raises:
        UserError: the tokenizer has another vocabulary, the pooled token is not the end of the words, or the
            tower of a transformers model does not give the model's own text features.
    """
    ids = tokenizer.tokenize(["a"])
    if int(ids.max()) >= tower.vocabulary_size:
        raise UserError(
            f"Expected token ids below {tower.vocabulary_size}, the vocabulary of '{name}', "
            f"got {int(ids.max())} from its tokenizer; check vocab_size and hf_tokenizer_name in its config."
        )
    if not isinstance(tower, NativeTextTower):
        return
    _check_pooled_token(tower, tokenizer, ids, name)
    if is_transformers_model(model):
        _check_features(model, tower, tokenizer, name)


def _check_pooled_token(
    tower: NativeTextTower, tokenizer: PromptTokenizer, ids: torch.Tensor, name: str
) -> None:
    parts = tower.parts
    if parts.appended_cls or parts.pool == "last" or (parts.pool == "first" and not parts.causal):
        return
    pooled = int(tower.pooled_index(ids)[0])
    end = len(tokenizer.start_ids) + len(tokenizer.words("a"))
    # The end may be the first padding token: transformers pads CLIP's texts with their end.
    if pooled != end:
        raise UserError(
            f"Expected the text tower of '{name}' to pool the token that ends a text, got token {pooled} "
            f"of {end + 1} (pooling '{parts.pool}'); check pool_type and eos_id in its config."
        )


@torch.no_grad()
def _check_features(model: Any, tower: TextTower, tokenizer: PromptTokenizer, name: str) -> None:
    """A model of a class not known here may be built of the same parts and use them in another way."""
    table = next(model.parameters())
    ids = tokenizer.tokenize(["a photo of x", "a"]).to(table.device)
    wanted = features_of(model.get_text_features(input_ids=ids)).float()
    difference = (tower.encode_ids(ids).float() - wanted).norm() / wanted.norm()
    if not float(difference) <= (1e-3 if table.dtype.itemsize >= 4 else 0.05):
        raise UserError(
            f"Expected a text tower that works like CLIP's or SigLIP's in '{name}', got "
            f"{type(model).__name__}, whose text features differ by {float(difference):.1%}; choose another "
            "backbone."
        )
