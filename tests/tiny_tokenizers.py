"""Tokenizers of every form image-text models read with, of a handful of words, made without a download."""

from __future__ import annotations

from pathlib import Path
from string import ascii_lowercase
from typing import Any

import transformers
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from cma_tune.clip.loading import TransformersTokenizer

CONTEXT_LENGTH = 24

_CORPUS = [
    "a photo of a cat. a photo of a dog. striped red triangle, drawn on a blue ground.",
    "x x x x forest. f-16a/b fighter, blue dog and red cat! is that a photo of the forest?",
]


def _fast(tokenizer: Tokenizer, **special: str) -> Any:
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def _byte_level(specials: list[str], form: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        _CORPUS,
        trainers.BpeTrainer(
            vocab_size=400, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
        ),
    )
    return _with_form(tokenizer, form)


def _word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[BOS]", "[EOS]"]
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return tokenizer


def _unigram(specials: list[str], form: list[str]) -> Tokenizer:
    words = sorted({word.strip(".,!?") for line in _CORPUS for word in line.split()})
    pieces = [(special, 0.0) for special in specials]
    pieces += [(f"▁{word}", -2.0) for word in words] + [
        (character, -5.0) for character in "▁" + ascii_lowercase
    ]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=specials.index("<unk>")))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return _with_form(tokenizer, form)


def _clip() -> Any:
    """As transformers reads for CLIP: lower case, the end has the highest id and is the padding too."""
    tokenizer = _byte_level([], ["$A"])
    tokenizer.normalizer = normalizers.Lowercase()
    start, end = "<|startoftext|>", "<|endoftext|>"
    tokenizer.add_special_tokens([start, end])
    _with_form(tokenizer, [start, "$A", end])
    return _fast(tokenizer, pad_token=end, bos_token=start, eos_token=end, unk_token=end)


def _with_form(tokenizer: Tokenizer, form: list[str]) -> Tokenizer:
    tokens = [(part, tokenizer.token_to_id(part)) for part in form if part != "$A"]
    tokenizer.post_processor = processors.TemplateProcessing(single=" ".join(form), special_tokens=tokens)
    return tokenizer


def tiny_transformers_tokenizer(kind: str) -> Any:
    """A transformers tokenizer trained on a handful of words, of the form that `kind` of model reads with."""
    if kind == "roberta":
        tokenizer = _byte_level(["<s>", "<pad>", "</s>", "<unk>"], ["<s>", "$A", "</s>"])
        return _fast(tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    if kind == "hf-clip":
        return _clip()
    if kind == "nllb":
        tokenizer = _byte_level(["<s>", "<pad>", "</s>", "<unk>", "eng_Latn"], ["eng_Latn", "$A", "</s>"])
        return _fast(tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    if kind == "siglip":
        # T5's words with one token for end and padding.
        tokenizer = _unigram(["<pad>", "</s>", "<unk>"], ["$A", "</s>"])
        return _fast(tokenizer, pad_token="</s>", eos_token="</s>", unk_token="<unk>")
    if kind == "siglip2":
        tokenizer = _unigram(["<pad>", "</s>", "<unk>"], ["$A", "</s>"])
        return _fast(tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    tokenizer = _with_form(_word_piece(), ["[CLS]", "$A", "[SEP]"])
    specials = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    return _fast(tokenizer, **specials, bos_token="[BOS]", eos_token="[EOS]")


TOKENIZER_OPTIONS: dict[str, dict[str, Any]] = {
    "siglip": {"clean": "canonicalize"},
    "siglip2": {"clean": "canonicalize"},
    "clipa": {"strip_sep_token": True},
    "clips": {"tokenizer_mode": "clips"},
}


def tiny_tokenizer(kind: str, folder: Path, **options: Any) -> Any:
    """open_clip's tokenizer of a kind; those of transformers are saved to and read from `folder`."""
    if kind == "clip":
        return SimpleTokenizer(context_length=CONTEXT_LENGTH)
    tiny_transformers_tokenizer(kind).save_pretrained(folder)
    return HFTokenizer(
        str(folder), context_length=CONTEXT_LENGTH, **TOKENIZER_OPTIONS.get(kind, {}), **options
    )


def tiny_plain_tokenizer(kind: str) -> TransformersTokenizer:
    """A tokenizer of a kind as transformers' own image-text models are loaded with."""
    tokenizer = tiny_transformers_tokenizer(kind)
    tokenizer.model_max_length = CONTEXT_LENGTH
    return TransformersTokenizer(tokenizer)
