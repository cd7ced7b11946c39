"""A model with LoRA on some of its matrices, made by peft from a frozen backbone."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from cma_tune.clip.attention import Side, attention_blocks, split_attention, tower_of
from cma_tune.clip.backbone import Backbone
from cma_tune.errors import UserError
from cma_tune.learners.keyed_dropout import KeyedDropout, Noise

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""peft's names of its files."""

Matrix = Literal["q", "k", "v", "o", "fc1", "fc2"]
"""Projections of queries, keys and values, attention's output projection, and the two layers of the MLP."""

_NAMES: dict[Matrix, tuple[str, str]] = {
    "q": ("attn.q_proj", "self_attn.q_proj"),
    "k": ("attn.k_proj", "self_attn.k_proj"),
    "v": ("attn.v_proj", "self_attn.v_proj"),
    "o": ("attn.out_proj", "self_attn.out_proj"),
    "fc1": ("mlp.c_fc", "mlp.fc1"),
    "fc2": ("mlp.c_proj", "mlp.fc2"),
}
"""What they are called in a block of open_clip (with split attention) and of transformers."""


@dataclass(frozen=True)
class LoraOptions:
    """Where and what LoRA is; the defaults are CLIP-LoRA's.

    Attributes:
        rank: r of B ``[out, r]`` and A ``[r, in]``.
        alpha: α; B·A counts α/√r times, or
        rslora: if this is not so, α/r times.
        dropout: of what goes into A, in training.
        towers: which are adapted.
        matrices: which of every block.
        layers: blocks from 0, or so many last ones; None for all.
    """

    rank: int = 2
    alpha: float = 1.0
    rslora: bool = True
    dropout: float = 0.25
    towers: Literal["both", "text", "image"] = "both"
    matrices: tuple[str, ...] = ("q", "k", "v")
    layers: int | tuple[int, ...] | None = None

    @property
    def sides(self) -> tuple[Side, ...]:
        """The towers that are adapted."""
        return ("image", "text") if self.towers == "both" else (self.towers,)


class AdaptedModel:
    """A twin of a frozen backbone, with LoRA on some matrices and weights of its own for nothing else.

    Args:
        backbone: stays as it is. Its weights are shared, so that this takes hardly more memory than A and B.
        options: where LoRA is.
        seed: of the start (A as torch starts a linear layer, B at 0) and of dropout.

    Attributes:
        backbone: the twin; its model holds peft's layers.
        matrices: a module that holds A and B alone, under the names that they have in peft's files.
        dropouts: the layers' dropout.
        noise: what that is drawn from.

    Raises:
        UserError: a tower has no attention of a kind that is known here, or no such layer.
    """

    def __init__(self, backbone: Backbone, options: LoraOptions, seed: int) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        self.backbone = backbone.twin()
        model = split_attention(self.backbone.model)
        self.config = LoraConfig(
            r=options.rank,
            lora_alpha=options.alpha,  # type: ignore[arg-type]  # peft divides it, whatever it is
            use_rslora=options.rslora,
            lora_dropout=options.dropout,
            target_modules="|".join(_targets(model, side, options, backbone.name) for side in options.sides),
        )
        # Drawn on the CPU, without touching the global generator.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            inject_adapter_in_model(self.config, model)
        self.noise = Noise(seed, backbone.device)
        self.dropouts = nn.ModuleList()
        self.matrices = nn.Module()
        for path, layer in _lora_layers(model):
            if options.dropout:
                dropout = KeyedDropout(options.dropout, self.noise, len(self.dropouts))
                layer.lora_dropout["default"] = dropout
                self.dropouts.append(dropout)
            for name in ("lora_A", "lora_B"):
                matrix = getattr(layer, name)["default"]
                # Training needs full precision, where the backbone has not.
                matrix.to(torch.promote_types(matrix.weight.dtype, torch.float32))
                _put(self.matrices, f"model.{path}.{name}", matrix)

    @torch.no_grad()
    def merged_into(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The frozen model's state with every adapted matrix in place of its own."""
        merged = dict(state)
        for path, layer in _lora_layers(self.backbone.model):
            change = layer.get_delta_weight("default")
            above, _, name = path.rpartition(".")
            fused = f"{above}.in_proj_weight"
            if f"{path}.weight" in merged or fused not in merged:
                merged[f"{path}.weight"] = merged[f"{path}.weight"] + change.to(merged[f"{path}.weight"])
                continue
            # open_clip's own modules hold queries, keys and values in one matrix.
            letter = ("q_proj", "k_proj", "v_proj").index(name)
            rows = [part.clone() for part in merged[fused].chunk(3)]
            rows[letter] += change.to(rows[letter])
            merged[fused] = torch.cat(rows)
        return merged

    def config_file(self) -> bytes:
        """The content of peft's config file."""
        self.config.inference_mode = True  # what peft writes for an adapter that is trained
        with tempfile.TemporaryDirectory() as folder:
            self.config.save_pretrained(folder)
            return (Path(folder) / CONFIG).read_bytes()


def _lora_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """peft's layers and their paths."""
    from peft.tuners.lora import LoraLayer

    return ((path, module) for path, module in model.named_modules() if isinstance(module, LoraLayer))


def _put(root: nn.Module, path: str, module: nn.Module) -> None:
    """Make `module` a descendant of `root` under a path with dots."""
    *above, name = path.split(".")
    for part in above:
        if not hasattr(root, part):
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    root.add_module(name, module)


def _targets(model: nn.Module, side: Side, options: LoraOptions, name: str) -> str:
    """A pattern that the paths of a tower's matrices match in full, and no other's."""
    found = attention_blocks(model, side)
    if found is None:
        tower = tower_of(model, side)
        kind = type(tower[1]).__name__ if tower else type(model).__name__
        instead = "--lora.towers text" if side == "image" and options.towers == "both" else "another backbone"
        raise UserError(
            f"Expected {'an image' if side == 'image' else 'a text'} tower made of plain attention blocks "
            f"of open_clip or transformers for LoRA in '{name}', got {kind}; use {instead}."
        )
    path, blocks = found
    layers = "|".join(map(str, _layers(len(blocks), options.layers, side, name)))
    matrices = "|".join(re.escape(_matrix_path(blocks[0], matrix, name)) for matrix in options.matrices)
    return rf"{re.escape(path)}\.({layers})\.({matrices})"


def _layers(blocks: int, chosen: int | Sequence[int] | None, side: Side, name: str) -> Sequence[int]:
    if chosen is None:
        return range(blocks)
    last = isinstance(chosen, int)
    layers = range(blocks - chosen, blocks) if isinstance(chosen, int) else chosen
    if not layers or min(layers) < 0 or max(layers) >= blocks:
        asked = f"the last {chosen}" if last else ", ".join(map(str, layers))
        raise UserError(
            f"Expected --lora.layers among the {blocks} blocks (from 0) of the {side} tower of '{name}', got "
            f"{asked}; choose others, or one tower with --lora.towers."
        )
    return layers


def _matrix_path(block: nn.Module, matrix: str, name: str) -> str:
    if matrix not in get_args(Matrix):
        raise UserError(
            f"Expected matrices out of {', '.join(get_args(Matrix))} for LoRA, got '{matrix}'; "
            "choose others with --lora.matrices."
        )
    modules = dict(block.named_modules())
    for path in _NAMES[matrix]:  # type: ignore[index]
        if isinstance(modules.get(path), nn.Linear):
            return path
    raise UserError(
        f"Expected a matrix {matrix} in the blocks of '{name}' for LoRA, but there is none; "
        "choose others with --lora.matrices."
    )
