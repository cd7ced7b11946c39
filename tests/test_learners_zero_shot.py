"""Zero-shot against a loop over classes and templates, and what every learner refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import CLASS_NAMES, FEATURES, own_text_features, tiny_backbone
from learner_references import image_features, logits_by_loop

from cma_tune.errors import UserError
from cma_tune.learners import CoCoOp, CoOp, PromptOutput, ZeroShot
from cma_tune.learners.coop import ContextOptions

torch.set_num_threads(1)

TEMPLATES = ("a photo of a {}.", "itap of a {}.", "{}")


@pytest.mark.parametrize("family", ["clip-vit", "coca", "siglip", "hf-bert-cls"])
@pytest.mark.parametrize("templates", [TEMPLATES[:1], TEMPLATES])
def test_zero_shot_against_a_loop(family: str, templates: tuple[str, ...]) -> None:
    backbone = tiny_backbone(family)
    own: Any = backbone.tokenizer._tokenizer
    names = ["cat", "blue_dog", "striped red triangle"]
    expected = []
    for name in names:
        mean = torch.zeros(FEATURES, dtype=torch.float64)
        for template in templates:
            prompt = template.replace("{}", name.replace("_", " "))
            features = own_text_features(backbone, own([prompt]))[0].detach()
            mean += features / features.norm()
        expected.append(mean / mean.norm())
    learner, images = ZeroShot(backbone, names, templates), image_features()
    output = learner(images)
    assert isinstance(output, PromptOutput)
    torch.testing.assert_close(output.text_features, torch.stack(expected), rtol=0, atol=1e-12)
    reference = logits_by_loop(backbone, images, torch.stack(expected))
    torch.testing.assert_close(output.logits, reference, rtol=0, atol=1e-11)
    torch.testing.assert_close(output.image_features, images)
    assert not list(learner.parameters()) and not learner.state_dict()


def test_zero_shot_over_other_classes() -> None:
    backbone = tiny_backbone("clip-vit")
    learner = ZeroShot(backbone, CLASS_NAMES, TEMPLATES).for_classes(["forest", "cat"])
    assert learner.class_names == ("forest", "cat")
    assert torch.equal(
        learner.text_features(), ZeroShot(backbone, ["forest", "cat"], TEMPLATES).text_features()
    )


def test_braces_mean_nothing_but_the_place_of_the_name() -> None:
    backbone = tiny_backbone("clip-vit")
    odd = ZeroShot(backbone, ["a{0}b"], ["{ {}"]).text_features()
    torch.testing.assert_close(odd, backbone.encode_texts(["{ a{0}b"]))


@pytest.mark.parametrize("templates", [[], ["a photo."], ["a {} or a {}"], ["a photo of {}.", "a {name}"]])
def test_zero_shot_refuses_templates_without_one_place(templates: list[str]) -> None:
    with pytest.raises(UserError, match=r"templates with one \{\}"):
        ZeroShot(tiny_backbone("clip-vit"), CLASS_NAMES, templates)


def test_too_long_a_prompt_names_the_class() -> None:
    backbone = tiny_backbone("clip-vit")
    long = "very_" * 30 + "long"
    for make in (
        lambda names: ZeroShot(backbone, names, TEMPLATES),
        lambda names: CoOp(backbone, names, ContextOptions(4)),
        lambda names: CoCoOp(backbone, names, ContextOptions(4)),
        CoOp(backbone, CLASS_NAMES, ContextOptions(4)).for_classes,
    ):
        with pytest.raises(UserError, match=rf"at most 24 tokens, got \d+ for class '{long}'"):
            make(["cat", long])
    with pytest.raises(UserError, match=r"at most 24 tokens, got 25 for class 'cat'"):
        CoOp(backbone, ["cat"], ContextOptions(21))


def test_too_long_a_prompt_is_found_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny_backbone("clip-vit")

    def ran(*_: Any) -> None:
        raise AssertionError("the text tower ran")

    monkeypatch.setattr(type(backbone.tower), "forward", ran)
    for learner in (CoOp, CoCoOp):
        with pytest.raises(UserError, match="for class 'blue dog'"):
            learner(backbone, ["cat", "blue dog"], ContextOptions(20))


@pytest.mark.parametrize("learner", [CoOp, CoCoOp])
def test_no_classes_are_refused(learner: Any) -> None:
    with pytest.raises(UserError, match="at least one class name"):
        learner(tiny_backbone("clip-vit"), [])
