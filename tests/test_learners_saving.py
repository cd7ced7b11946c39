"""A learned prompt as files: what comes back, and what is refused."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from families import CLASS_NAMES, tiny_backbone
from learner_references import image_features
from safetensors.torch import load_file, save_file

from cma_tune.clip.backbone import Backbone
from cma_tune.errors import UserError
from cma_tune.learners import CoCoOp, CoOp, from_pretrained, save_prompt, saving
from cma_tune.learners.coop import ContextLearner, ContextOptions
from cma_tune.learners.nearest_words import nearest_words

torch.set_num_threads(1)


def backbone() -> Backbone:
    return tiny_backbone("clip-vit", torch.float32)


def learned(kind: type[CoOp] | type[CoCoOp] = CoOp, options: ContextOptions | None = None) -> CoOp | CoCoOp:
    """A learner whose parameters are not those of any start."""
    learner = kind(backbone(), CLASS_NAMES, options or ContextOptions(3, "middle"), seed=4)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return learner


VARIANTS = pytest.mark.parametrize(
    ("kind", "options"),
    [
        (CoOp, ContextOptions(3, "middle")),
        (CoOp, ContextOptions(2, "front", per_class=True)),
        (CoOp, ContextOptions(16, "end", words="a photo of a")),
        (CoCoOp, ContextOptions(3, "end")),
    ],
)


@VARIANTS
def test_what_is_saved_comes_back(kind: Any, options: ContextOptions, tmp_path: Path) -> None:
    learner = learned(kind, options)
    save_prompt(learner, tmp_path / "new" / "prompt", {"split": "abc", "seed": 1})
    again = from_pretrained(tmp_path / "new" / "prompt", backbone())
    assert type(again) is kind and again.options == learner.options
    assert again.class_names == tuple(CLASS_NAMES)
    assert not any(parameter.requires_grad for parameter in again.parameters())
    images = image_features().float()
    assert torch.equal(again(images).logits, learner(images).logits)
    for name, value in learner.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


def test_the_card_says_what_was_learned_and_where(tmp_path: Path) -> None:
    learner = learned(options=ContextOptions(16, words="a photo of a"))
    save_prompt(learner, tmp_path, {"split": "abc", "figures": {"accuracy": 61.5}})
    card = json.loads((tmp_path / "card.json").read_text(encoding="utf-8"))
    assert card["learner"] == "coop" and card["class_names"] == list(CLASS_NAMES)
    assert card["backbone"] == backbone().describe()
    shape = [4, backbone().tower.width]
    assert card["context"] == {
        "tokens": 4,
        "position": "end",
        "per_class": False,
        "words": "a photo of a",
        "learned": None,
        "shape": shape,
    }
    assert card["split"] == "abc" and card["figures"] == {"accuracy": 61.5}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["card.json", "prompt.safetensors"]
    assert list(load_file(tmp_path / "prompt.safetensors")) == ["context"]


def test_the_backbone_is_loaded_as_the_card_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_prompt(learned(), tmp_path)
    asked: list[tuple[Any, ...]] = []

    def load(*arguments: Any) -> Backbone:
        asked.append(arguments)
        return backbone()

    monkeypatch.setattr(saving, "load_backbone", load)
    from_pretrained(tmp_path, device="cpu")
    assert asked == [("clip-vit", None, None, "cpu")]


def test_weights_of_another_backbone_are_refused(tmp_path: Path) -> None:
    save_prompt(learned(), tmp_path)
    other = tiny_backbone("custom-text", torch.float32)
    with pytest.raises(UserError, match=r"learned on \(clip-vit, weights .* got custom-text"):
        from_pretrained(tmp_path, other)


def test_another_preprocessing_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_prompt(learned(), tmp_path)
    from_pretrained(tmp_path, backbone())
    assert not caplog.records
    card = json.loads((tmp_path / "card.json").read_text())
    card["backbone"]["preprocessing"] = "0" * 64
    (tmp_path / "card.json").write_text(json.dumps(card))
    with caplog.at_level(logging.WARNING):
        from_pretrained(tmp_path, backbone())
    assert "preprocessing" in caplog.text


def test_one_flipped_bit_is_refused(tmp_path: Path) -> None:
    save_prompt(learned(), tmp_path)
    path = tmp_path / "prompt.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        from_pretrained(tmp_path, backbone())


@pytest.mark.parametrize("content", [b"", b"not safetensors", b"\xff" * 64])
def test_damaged_weights_are_refused(content: bytes, tmp_path: Path) -> None:
    save_prompt(learned(), tmp_path)
    (tmp_path / "prompt.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"prompt\.safetensors"):
        from_pretrained(tmp_path, backbone())
    # Also where the card was made to agree.
    rewrite(tmp_path, weights=saving.hashlib.sha256(content).hexdigest())
    with pytest.raises(UserError, match="Expected safetensors"):
        from_pretrained(tmp_path, backbone())


def rewrite(folder: Path, **changes: Any) -> None:
    """Change entries of the card; None takes one away."""
    card = json.loads((folder / "card.json").read_text())
    card.update(changes)
    kept = {name: value for name, value in card.items() if value is not None}
    (folder / "card.json").write_text(json.dumps(kept))


def test_new_weights_beside_an_old_card_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kill between the two files leaves."""
    save_prompt(learned(), tmp_path)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(saving, "write_json", killed)
        save_prompt(learned(options=ContextOptions(3, "front")), tmp_path / "other")
        raise AssertionError("not reached")
    assert not (tmp_path / "other" / "card.json").exists()
    with pytest.raises(UserError, match=r"card.*no such file"):
        from_pretrained(tmp_path / "other", backbone())
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(saving, "write_json", killed)
        changed = learned()
        changed.context.data += 1
        save_prompt(changed, tmp_path)
    with pytest.raises(UserError, match="got others or a damaged file"):
        from_pretrained(tmp_path, backbone())


def test_a_file_is_no_place_to_save_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="Expected a folder to save to, got the file"):
        learned().save_pretrained(tmp_path / "file")


def test_a_text_is_no_list_of_class_names() -> None:
    with pytest.raises(UserError, match="Expected a list of class names, got the text 'cat'"):
        learned().for_classes("cat")


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"card\.json, but there is no such file"):
        from_pretrained(tmp_path / "nowhere", backbone())
    save_prompt(learned(), tmp_path)
    (tmp_path / "prompt.safetensors").unlink()
    with pytest.raises(UserError, match=r"prompt\.safetensors"):
        from_pretrained(tmp_path, backbone())


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2},
        {"learner": "maple"},
        {"weights": None},
        {"backbone": None},
        {"backbone": {"name": "clip-vit"}},
        {"class_names": 3},
        {"class_names": []},
        {"class_names": ["cat", 3]},
        {"context": {"tokens": 3}},
        {"context": {"tokens": 3, "shape": [3, 16], "position": "behind", "per_class": False, "words": None}},
        {"context": {"tokens": 3, "shape": ["a"], "position": "end", "per_class": False, "words": None}},
        {"context": {"tokens": 3, "shape": [4, 16], "position": "end", "per_class": False, "words": None}},
        {"context": {"tokens": 3, "shape": [3, 16], "position": "end", "per_class": True, "words": None}},
        {"context": {"tokens": 3, "shape": [3, 16], "surprise": 1}},
        {"context": None},
    ],
)
def test_unfit_cards_are_refused_in_one_sentence(changes: dict[str, Any], tmp_path: Path) -> None:
    save_prompt(learned(), tmp_path)
    rewrite(tmp_path, **changes)
    with pytest.raises(UserError, match="Expected") as error:
        from_pretrained(tmp_path, backbone())
    assert "\n" not in str(error.value)


def test_weights_of_another_learner_are_refused(tmp_path: Path) -> None:
    save_prompt(learned(), tmp_path)
    rewrite(tmp_path, learner="cocoop")
    with pytest.raises(UserError, match=r"fit the card .*meta_net") as error:
        from_pretrained(tmp_path, backbone())
    assert "\n" not in str(error.value)


def test_provenance_cannot_replace_the_cards_own_entries(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="learner"):
        save_prompt(learned(), tmp_path, {"learner": "mine"})
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------- nearest words


def with_words(words: list[str]) -> tuple[ContextLearner, list[int]]:
    """A learner whose context vectors are the embeddings of single-token words."""
    ids = [backbone().tokenizer.words(word)[0] for word in words]
    learner = CoOp(backbone(), ["cat"], ContextOptions(len(words)))
    with torch.no_grad():
        learner.context.copy_(backbone().tower.vocabulary()[ids])
    return learner, ids


def test_known_embeddings_are_their_own_words() -> None:
    words = ["photo", "striped", "dog"]
    learner, _ = with_words(words)
    nearest = nearest_words(learner, 3)
    assert [ranked[0] for ranked in nearest] == [(word, 0.0) for word in words]
    assert all(len(ranked) == 3 for ranked in nearest)


def test_nearest_words_against_a_loop() -> None:
    learner = learned()
    vocabulary = backbone().tower.vocabulary()
    for vector, ranked in zip(learner.context.detach(), nearest_words(learner, 4), strict=True):
        distances = [math.dist(row, vector.tolist()) for row in vocabulary.tolist()]
        order = sorted(range(len(distances)), key=distances.__getitem__)[:4]
        assert [word for word, _ in ranked] == [backbone().tokenizer.decode([i]) for i in order]
        assert [distance for _, distance in ranked] == pytest.approx([distances[i] for i in order], rel=1e-5)


def test_words_that_the_backbone_never_saw_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, ids = with_words(["photo", "dog"])
    vocabulary = torch.zeros_like(backbone().tower.vocabulary())
    vocabulary[ids] = backbone().tower.vocabulary()[ids]
    monkeypatch.setattr(type(backbone().tower), "vocabulary", lambda self: vocabulary)
    with torch.no_grad():
        learner.context.zero_()  # nearest to the unseen rows, which are zero
    assert [{word for word, _ in ranked} for ranked in nearest_words(learner, 5)] == [{"photo", "dog"}] * 2


def test_class_specific_contexts_are_averaged() -> None:
    shared, _ = with_words(["photo", "dog"])
    learner = CoOp(backbone(), ["cat", "forest"], ContextOptions(2, per_class=True))
    with torch.no_grad():
        learner.context.copy_(torch.stack([shared.context + 1, shared.context - 1]))
    assert [ranked[0][0] for ranked in nearest_words(learner, 1)] == ["photo", "dog"]


def test_no_words_are_refused() -> None:
    with pytest.raises(UserError, match="at least 1 word"):
        nearest_words(learned(), 0)


def test_only_safetensors_and_json_are_written(tmp_path: Path) -> None:
    save_prompt(learned(), tmp_path)
    rebuilt = tmp_path / "again.safetensors"
    save_file(load_file(tmp_path / "prompt.safetensors"), rebuilt)
    assert rebuilt.read_bytes() == (tmp_path / "prompt.safetensors").read_bytes()
