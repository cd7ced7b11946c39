"""LoRA: low-rank changes of the towers' matrices (Hu et al. 2022; on CLIP: Zanella & Ben Ayed 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache, partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cma_tune.clip.backbone import Backbone
from cma_tune.clip.context_prompts import ContextPrompts
from cma_tune.clip.packing import PackedPrompts
from cma_tune.clip.prompts import PromptLayout
from cma_tune.learners.adapted import CONFIG, WEIGHTS, AdaptedModel, LoraOptions
from cma_tune.learners.base import Learner
from cma_tune.learners.keyed_dropout import Noise
from cma_tune.learners.zero_shot import ZeroShot, template_texts

IMAGE_TOKENS = 2**20
"""More than an image has; tokens of different images have different numbers."""


class Lora(Learner):
    """The backbone with W + (α/√r)·B·A in place of W for some matrices of one or both towers.

    α/√r is that of CLIP-LoRA's code (rsLoRA, Kalajdzievski 2023); LoRA's paper has α/r, which is an option.

    The classes are hand-written prompts, as in `ZeroShot`, through the adapted text tower, and the images go
    through the adapted image tower; a tower without LoRA stays the backbone's. The frozen backbone is not
    touched: the adapted model is a twin that shares its weights.

    A and B are saved as peft saves them. ``peft.PeftModel.from_pretrained(model, folder)`` loads them into
    the backbone's model; one of open_clip goes through `cma_tune.clip.attention.split_attention` before.

    In training, dropout's noise is that of seed, step and place: the image's in the batch, or the prompt's
    token, where what all prompts begin with counts once. So it is the same for any number of processes and
    whether prompts are packed.

    Args:
        backbone: the frozen model.
        class_names: the classes.
        templates: hand-written prompts with one ``{}`` each; their features are averaged.
        options: where LoRA is.
        seed: of the random start and of dropout.
        adapted: an adapted model to share, instead of one of its own.

    Attributes:
        base_model: holds A and B, under peft's names.

    Raises:
        UserError: a tower can't be adapted, or a prompt is too long.
    """

    name = "lora"
    trains_images = True
    merges = True
    files = (WEIGHTS, CONFIG)
    embeddings: Tensor

    def __init__(
        self,
        backbone: Backbone,
        class_names: Sequence[str],
        templates: Sequence[str],
        options: LoraOptions | None = None,
        seed: int = 0,
        adapted: AdaptedModel | None = None,
    ) -> None:
        super().__init__(backbone, class_names)
        self.options = options = options or LoraOptions()
        self.templates = tuple(templates)
        self.trains_images = "image" in options.sides
        self._adapted = adapted or AdaptedModel(backbone, options, seed)
        self.base_model = self._adapted.matrices
        self.dropouts = self._adapted.dropouts  # without state; here they follow `train` and `eval`
        self._prompts: list[_KeyedPrompts] = []
        if "text" in options.sides:
            model, noise = self._adapted.backbone, self._adapted.noise
            for number, texts in enumerate(template_texts(class_names, templates)):
                ids = backbone.tokenizer.tokenize(texts, class_names)
                self._prompts.append(_KeyedPrompts(model, ids, noise, number))
        else:
            embeddings = ZeroShot(backbone, class_names, templates).embeddings
            self.register_buffer("embeddings", embeddings, persistent=False)

    def start_step(self, step: int) -> None:
        """See `Learner.start_step`."""
        self._adapted.noise.start(step)

    def text_features(self, image_features: Tensor | None = None) -> Tensor:
        """Class embeddings ``[C, D]``."""
        if not self._prompts:
            return self.embeddings
        self._adapted.backbone.text_options = self.backbone.text_options
        mean = torch.stack([prompts.features() for prompts in self._prompts]).mean(dim=0)
        return nn.functional.normalize(mean, dim=-1)

    def encode_images(self, images: Tensor) -> Tensor:
        """See `Learner.encode_images`."""
        if not self.trains_images:
            return self.backbone.encode_image(images)
        twin = self._adapted.backbone
        if not (torch.is_grad_enabled() or self.training):
            return twin.encode_image(images)
        with self._adapted.noise.at(partial(_image_places, max(1, len(images)), images.device)):
            return twin.image_features(images)

    def model_state(self) -> dict[str, Tensor]:
        """See `Learner.model_state`: W + (α/√r)·B·A in place of W, in both towers where both are adapted."""
        return self._adapted.merged_into(self.backbone.model.state_dict())

    def for_classes(self, class_names: Sequence[str]) -> Lora:
        """The same adapted model before other names in the same templates; it is shared, not copied."""
        return Lora(self.backbone, class_names, self.templates, self.options, adapted=self._adapted)

    def describe(self) -> dict[str, Any]:
        """Where LoRA is, and the templates."""
        return {"options": {**asdict(self.options), "templates": list(self.templates)}}

    def more_files(self) -> tuple[bytes, ...]:
        """peft's config."""
        return (self._adapted.config_file(),)

    @classmethod
    def card_trains_images(cls, card: Mapping[str, Any]) -> bool:
        """See `Learner.card_trains_images`."""
        return bool(card.get("options", {}).get("towers") != "text")

    @classmethod
    def from_card(
        cls,
        backbone: Backbone,
        class_names: Sequence[str],
        card: Mapping[str, Any],
        weights: Mapping[str, Tensor],
    ) -> Lora:
        """See `Learner.from_card`."""
        options = dict(card["options"])
        templates = list(options.pop("templates"))
        for name in ("matrices", "layers"):
            if isinstance(options[name], list):
                options[name] = tuple(options[name])
        options.setdefault("rslora", False)  # cards from before there was a choice
        return cls(backbone, class_names, templates, LoraOptions(**options))


def _image_places(images: int, device: torch.device, tokens: int) -> Tensor:
    """Numbers ``[b, tokens]`` of this process's share of a batch: every P-th image, from its rank on."""
    rank, processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    places = rank + processes * torch.arange(images, device=device)
    return places[:, None] * IMAGE_TOKENS + torch.arange(tokens, device=device)


class _KeyedPrompts(ContextPrompts):
    """Whole prompts, without a context, whose tokens tell dropout which they are.

    Args:
        backbone: with an adapted text tower.
        ids: ``[C, L]``.
        noise: of its dropout.
        number: of the template.
    """

    def __init__(self, backbone: Backbone, ids: Tensor, noise: Noise, number: int) -> None:
        super().__init__(backbone, PromptLayout(ids, ids.new_zeros(len(ids), 0)))
        self.noise, self.number = noise, number

    def features(self) -> Tensor:
        """Text features ``[C, D]`` of unit length, with gradients to the tower's parameters."""
        none = torch.zeros(1, 0, self.backbone.tower.width, device=self.backbone.device)
        return self.encode(none, same_on_every_process=True)[0]

    def _encode(self, part: Any, contexts: Tensor, *deep: Tensor | None) -> Tensor:
        # Here, since chunks come by once more in the backward pass.
        with self.noise.at(cache(partial(self._places, part.classes, part.packed))):
            return super()._encode(part, contexts, *deep)

    def _places(self, classes: Tensor, packed: PackedPrompts | None, tokens: int) -> Tensor:
        """Numbers of the tokens that go through a layer: ``[C', tokens]``, or ``[tokens]`` if packed."""
        count, full = self.layout.ids.shape
        first = self.number * (count + 1) * (full + 1)
        # Row 0 is what all prompts begin with; an appended class token stands at position `full`.
        if packed is None:
            positions = torch.tensor([*range(self.length), full], device=classes.device)[:tokens]
            rows = torch.where(positions < self.shared, 0, classes[:, None] + 1)
            return first + rows * (full + 1) + positions
        assert self._own is not None
        numbers = list(range(self.shared))
        for c in classes.tolist():
            numbers += [(c + 1) * (full + 1) + position for position in self._own[c][0]]
        places = first + torch.tensor(numbers, device=classes.device)
        return places if tokens == len(places) else places[packed.pooled]
