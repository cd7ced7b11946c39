"""From a backbone's name to its model, tokenizer and preprocessing, by open_clip or by transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cma_tune.clip.preprocessing import Preprocessing, open_clip_preprocessing, processor_preprocessing
from cma_tune.clip.sources import (
    EMBEDDED,
    FOLDER,
    TRANSFORMERS_FOLDER,
    failure_reason,
    image_text_parts_missing,
    is_transformers_name,
    offline_without_network,
    quiet,
    quiet_transformers,
    transformers_source,
    with_home,
)
from cma_tune.errors import UserError


@dataclass(frozen=True)
class Loaded:
    """What a backbone is made of.

    Attributes:
        model: on its device.
        tokenizer: called with texts, gives ids ``[N, context_length]``.
        preprocessing, transform: what images go through.
    """

    model: nn.Module
    tokenizer: Any
    preprocessing: Preprocessing
    transform: Any


class TransformersTokenizer:
    """A transformers tokenizer, called as open_clip's are: every text as long as the context.

    Args:
        tokenizer: transformers'.

    Attributes:
        context_length: its longest text, None where it has no limit.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        longest = int(tokenizer.model_max_length)
        # transformers writes "no limit" as a number with thirty digits.
        self.context_length = longest if longest < 10**9 else None

    def __call__(self, texts: Sequence[str], context_length: int | None = None) -> Tensor:
        """Texts as ids ``[N, context_length]``, padded, and cut where they are longer."""
        encoded = self.tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=context_length or self.context_length,
            return_tensors="pt",
        )
        return torch.as_tensor(encoded["input_ids"])


def load(name: str, pretrained: str | None, model_config: str | None, device: torch.device | str) -> Loaded:
    """Load what a name that was checked stands for.

    Raises:
        UserError: it can't be loaded, or is nothing that a backbone can be made of.
    """
    name, pretrained, model_config = with_home(name, pretrained, model_config)
    try:
        if is_transformers_name(name):
            return _load_by_transformers(name, device)
        return _load_by_open_clip(name, pretrained, model_config, device)
    except UserError:
        raise
    except Exception as error:  # both libraries raise anything from OSError to a bare RuntimeError here
        with_weights = f" with {pretrained}" if pretrained else ""
        folder = TRANSFORMERS_FOLDER if is_transformers_name(name) else FOLDER
        raise UserError(
            f"Expected to load backbone '{name}'{with_weights}, but it failed: "
            f"{failure_reason(error, folder)}."
        ) from error


def _load_by_open_clip(
    name: str, pretrained: str | None, model_config: str | None, device: torch.device | str
) -> Loaded:
    import open_clip

    source = name
    if name == EMBEDDED:
        from cma_tune.data.builtin import SMALL_CLIP_DIR

        source = f"{FOLDER}{SMALL_CLIP_DIR}"
    if model_config is not None:
        # Whole, because open_clip reads all its config files anew whenever one is added.
        open_clip.add_model_config(Path(model_config).resolve())
    with quiet(), offline_without_network(source, pretrained):
        # Unlike create_model_and_transforms, this fails where no weights were found.
        model, transform = open_clip.create_model_from_pretrained(
            source, pretrained=pretrained, device=device, weights_only=True
        )
        tokenizer = open_clip.get_tokenizer(source)
    return Loaded(model, tokenizer, open_clip_preprocessing(model), transform)


def _load_by_transformers(name: str, device: torch.device | str) -> Loaded:
    import transformers

    source = transformers_source(name)
    with quiet_transformers(), offline_without_network(name):
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
        missing = image_text_parts_missing(config.to_dict())
        if missing:
            raise UserError(
                f"Expected an image-text model such as CLIPModel or SiglipModel in '{name}', got a "
                f"{config.model_type} config without {', '.join(missing)}; choose another backbone."
            )
        processor = transformers.AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
        preprocessing = processor_preprocessing(processor.to_dict(), name)
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        model, report = transformers.AutoModel.from_pretrained(
            source, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    # transformers only warns where weights are missing, and goes on with random ones.
    absent = sorted(report["missing_keys"])
    if absent:
        raise UserError(
            f"Expected all weights of a {type(model).__name__} in '{name}', got none for {absent[0]}"
            f"{f' and {len(absent) - 1} more' if absent[1:] else ''}; get the files again."
        )
    _check_image_size(config, preprocessing, name)
    # Checkpoints in half precision too: what is computed in is the run's choice, not the file's.
    return Loaded(
        model.float().to(device), TransformersTokenizer(tokenizer), preprocessing, preprocessing.transform()
    )


def _check_image_size(config: Any, preprocessing: Preprocessing, name: str) -> None:
    size = getattr(config.vision_config, "image_size", None)
    if isinstance(size, int) and preprocessing.size != (size, size):
        height, width = preprocessing.size
        raise UserError(
            f"Expected images of {size}×{size} for the image tower of '{name}', got an image processor that "
            f"makes them {height}×{width}; set its preprocessor_config.json."
        )
