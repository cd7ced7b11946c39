"""Exported classifiers: other programs, without this package, get the learner's logits from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnxruntime
import open_clip
import pytest
import torch
import transformers
from families import CLASS_NAMES, FAMILIES, model_config, tiny_backbone
from safetensors import safe_open
from tiny_runs import backbone, coop, random_features
from torch import Tensor, nn

from cma_tune.cli import main
from cma_tune.clip.backbone import Backbone, load_backbone
from cma_tune.clip.preprocessing import processor_preprocessing
from cma_tune.errors import UserError
from cma_tune.learners import (
    ClipAdapter,
    CoCoOp,
    CoOp,
    Learner,
    LinearProbe,
    Lora,
    LpPlusPlus,
    MaPLe,
    Support,
    Tcp,
    TipAdapter,
    TipAdapterF,
    ZeroShot,
    save_prompt,
)
from cma_tune.learners.adapted import LoraOptions
from cma_tune.learners.coop import ContextOptions
from cma_tune.serving import export as exporting
from cma_tune.serving.classifier import linear_rows, read_classifier
from cma_tune.serving.export import export
from cma_tune.serving.lookup_model import write_model
from cma_tune.serving.onnx_file import ImagesToLogits, write_onnx

NAMES = ("cat", "red dog", "F-16A/B")
TEMPLATES = ["a photo of a {}."]


def learners() -> dict[str, Learner]:
    """One of every kind of logits, on the tiny CLIP."""
    model = backbone()
    features, labels = random_features(9, 3, seed=2)
    support = Support(features[0], labels)
    embeddings = ZeroShot(model, NAMES, TEMPLATES).embeddings
    made: list[Learner] = [
        coop(NAMES),
        CoCoOp(model, NAMES, ContextOptions(2)),
        Tcp(model, NAMES, TEMPLATES, ContextOptions(2)),
        LinearProbe(model, NAMES, 3 * torch.randn(3, 12, generator=torch.Generator().manual_seed(1))),
        LpPlusPlus(model, NAMES, embeddings, support),
        TipAdapter(model, NAMES, embeddings, support),
        TipAdapterF(model, NAMES, embeddings, support),
        ClipAdapter(model, NAMES, TEMPLATES),
    ]
    return {learner.name: learner.requires_grad_(False) for learner in made}


def saved(learner: Learner, folder: Path) -> Path:
    save_prompt(learner, folder, {"dataset": "pets", "figures": {"accuracy": 50.0}, "seed": 1})
    return folder


def images(count: int, model: Backbone) -> Tensor:
    """Pixels ``[count, 3, H, W]``."""
    size = model.preprocessing.size
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(3))


def expected_logits(learner: Learner, pixels: Tensor) -> Tensor:
    encode = learner.encode_images if learner.trains_images else learner.backbone.encode_image
    with torch.no_grad():
        logits: Tensor = learner(encode(pixels)).logits
    return logits


@pytest.mark.parametrize("name", ["coop", "tcp", "linear_probe", "lp_plus_plus"])
def test_a_matrix_gives_the_logits(name: str, tmp_path: Path) -> None:
    learner = learners()[name]
    export(saved(learner, tmp_path / "prompt"), "classifier", tmp_path / "out")
    with safe_open(tmp_path / "out" / "classifier.safetensors", framework="pt") as opened:
        matrix = opened.get_tensor("classifier")
        said = json.loads(opened.metadata()["cma_tune"])
        assert list(opened.keys()) == ["classifier"]
    assert said == json.loads((tmp_path / "out" / "classifier.json").read_text())
    assert said["class_names"] == list(NAMES) and said["learner"] == name
    assert said["backbone"] == backbone().describe()
    assert said["preprocessing"]["mean"] == [0.5] * 3 and said["preprocessing"]["size"] == [32, 32]
    assert said["learned"] == {"dataset": "pets", "figures": {"accuracy": 50.0}}
    # By open_clip's own encoder.
    pixels = images(5, backbone())
    model: Any = backbone().model
    with torch.no_grad():
        features = model.encode_image(pixels, normalize=True)
    logits = said["scale"] * features @ matrix.T
    torch.testing.assert_close(logits, expected_logits(learner, pixels), rtol=1e-5, atol=1e-4)


def test_other_class_names_are_baked_in(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("bird\nred dog\n")
    prompt = saved(coop(NAMES), tmp_path / "prompt")
    names, output = str(tmp_path / "names.txt"), str(tmp_path / "out")
    main(["export", str(prompt), "--to", "classifier", output, "--classes", names])
    said = json.loads((tmp_path / "out" / "classifier.json").read_text())
    assert said["class_names"] == ["bird", "red dog"]
    assert said["learned"] == {}  # the prompt's figures are of other classes
    with safe_open(tmp_path / "out" / "classifier.safetensors", framework="pt") as opened:
        matrix = opened.get_tensor("classifier")
    torch.testing.assert_close(matrix, coop(NAMES).for_classes(["bird", "red dog"]).text_features().detach())


def test_open_clip_alone_gives_the_logits(tmp_path: Path) -> None:
    learner = coop(NAMES)
    export(saved(learner, tmp_path / "prompt"), "model", tmp_path / "out")
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path / 'out'}")
    model.eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'out'}")
    pixels = images(4, backbone())
    order = [2, 0, 1]
    with torch.no_grad():
        image, text, scale = model(pixels, tokenizer([NAMES[i] for i in order]))
    expected = expected_logits(learner, pixels)[:, order]
    torch.testing.assert_close(scale * image @ text.T, expected, rtol=1e-5, atol=1e-4)
    assert str(transform) == str(backbone().transform)
    with torch.no_grad():  # of unit length before they are normalised, too
        raw = model.encode_text(tokenizer(list(NAMES)))
    torch.testing.assert_close(raw, learner.text_features().detach(), rtol=1e-5, atol=1e-6)
    with pytest.raises(Exception, match="UNK"):
        tokenizer(["a photo of a cat."])


@pytest.mark.parametrize("family", ["clip-resnet", "custom-text-timm", "coca", "siglip", "hf-roberta-mean"])
def test_every_kind_of_model_becomes_a_plain_one(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_backbone(family, torch.float32)
    learner = CoOp(model, CLASS_NAMES, ContextOptions(2)).requires_grad_(False)
    config = model_config(FAMILIES[family], model.tokenizer._tokenizer, tmp_path / "tokenizer")
    with monkeypatch.context() as patch:  # such a random model is in no list of open_clip's
        patch.setattr(open_clip, "get_model_config", lambda name: config)
        write_model(learner, tmp_path, {})
    plain, _ = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path}")
    plain.eval()
    assert type(plain) is open_clip.CLIP
    pixels = images(2, model)
    with torch.no_grad():
        image, text, scale = plain(pixels, torch.arange(len(CLASS_NAMES))[:, None])
    torch.testing.assert_close(scale * image @ text.T, expected_logits(learner, pixels), rtol=1e-4, atol=1e-4)


def moved_lora(model: Backbone, names: tuple[str, ...]) -> Lora:
    """LoRA on both towers, away from its start."""
    learner = Lora(model, names, TEMPLATES, LoraOptions(rank=3, matrices=("q", "k", "v", "o", "fc1", "fc2")))
    for number, parameter in enumerate(learner.parameters()):
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
        parameter.data.add_(0.3 * noise)
    return learner.requires_grad_(False).eval()


@pytest.mark.parametrize("method", ["coop", "lora"])
@pytest.mark.parametrize("family", [name for name in FAMILIES if name.startswith("transformers-")])
def test_a_model_of_transformers_becomes_one_that_transformers_alone_loads(
    family: str, method: str, tmp_path: Path
) -> None:
    model = tiny_backbone(family, torch.float32)
    learner: Learner = moved_lora(model, CLASS_NAMES)
    if method == "coop":
        learner = CoOp(model, CLASS_NAMES, ContextOptions(2)).requires_grad_(False)
    write_model(learner, tmp_path, {})
    plain = transformers.AutoModel.from_pretrained(tmp_path)
    assert type(plain) is type(model.model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer(list(CLASS_NAMES), return_tensors="pt", padding=True)["input_ids"]
    assert ids.flatten().tolist() == list(range(len(CLASS_NAMES)))
    pixels = images(2, model)
    with torch.no_grad():
        output = plain(input_ids=ids, pixel_values=pixels)
    logits = output.logits_per_image - (getattr(plain, "logit_bias", None) or 0)
    torch.testing.assert_close(logits, expected_logits(learner, pixels), rtol=1e-4, atol=1e-4)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    assert processor_preprocessing(processor.to_dict()) == model.preprocessing


def test_lora_is_merged_into_an_open_clip_model(tmp_path: Path) -> None:
    learner = moved_lora(backbone(), NAMES)
    export(saved(learner, tmp_path / "prompt"), "model", tmp_path / "out")
    plain, _ = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path / 'out'}")
    plain.eval()
    pixels = images(2, backbone())
    with torch.no_grad():
        image, text, scale = plain(pixels, torch.arange(len(NAMES))[:, None])
        untouched = backbone().encode_image(pixels)
    torch.testing.assert_close(scale * image @ text.T, expected_logits(learner, pixels), rtol=1e-4, atol=1e-4)
    assert (image - untouched).abs().max() > 1e-2  # LoRA does change the image side


def check_onnx(learner: Learner, folder: Path) -> None:
    """The file's logits are those of torch for several numbers of images, by onnxruntime alone."""
    write_onnx(learner, folder, {})
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 2, 9):  # on a CPU, the backbone takes 8 images at once
        pixels = images(count, learner.backbone)
        (logits,) = session.run(["logits"], {"images": pixels.numpy()})
        expected = expected_logits(learner, pixels)
        torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-4, atol=1e-4)
    said = json.loads(session.get_modelmeta().custom_metadata_map["cma_tune"])
    assert said["class_names"] == list(learner.class_names)
    assert [path.name for path in sorted(folder.iterdir())] == ["classifier.json", "model.onnx"]


def test_onnx_of_a_method_with_logits_of_its_own(tmp_path: Path) -> None:
    check_onnx(learners()["tip_adapter"], tmp_path)


def test_onnx_of_a_cache_with_one_image_a_class_in_order(tmp_path: Path) -> None:
    """As runs with one shot leave it."""
    model = backbone()
    support = Support(random_features(3, 3, seed=2)[0][0], torch.arange(3))
    embeddings = ZeroShot(model, NAMES, TEMPLATES).embeddings
    check_onnx(TipAdapter(model, NAMES, embeddings, support).requires_grad_(False), tmp_path)


@pytest.mark.parametrize("name", ["linear_probe", "clip_adapter"])
def test_what_is_traced_gives_the_logits(name: str) -> None:
    learner, pixels = learners()[name], images(9, backbone())
    module = ImagesToLogits(learner).eval()
    batch = {"images": {0: torch.export.Dim("batch")}}
    program = torch.export.export(module, (images(3, backbone()),), dynamic_shapes=batch).module()
    with torch.no_grad():
        got = program(pixels)
    torch.testing.assert_close(got, expected_logits(learner, pixels), rtol=1e-5, atol=1e-4)


def test_onnx_of_prompts_in_the_embedded_backbones_towers(tmp_path: Path) -> None:
    learner = MaPLe(load_backbone("embedded"), NAMES, ContextOptions(2)).requires_grad_(False)
    check_onnx(learner.eval(), tmp_path)


def test_a_file_for_one_number_of_images_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exporter makes one without a word where the tower goes by the number."""

    def by_number(self: Learner, pixels: Tensor) -> Tensor:
        parts = [self.backbone.encode_image(part) for part in pixels.split(len(pixels) // 2 + 1)]
        return torch.cat(parts) * len(pixels)

    monkeypatch.setattr(CoOp, "encode_images", by_number, raising=False)
    with pytest.raises(UserError, match="Expected ONNX of 'coop'") as caught:
        write_onnx(coop(NAMES), tmp_path, {})
    assert "\n" not in str(caught.value)


def test_a_learners_own_image_tower_is_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced in torch: the graph goes through what the learner encodes with."""

    def doubled(self: Learner, pixels: Tensor) -> Tensor:
        return nn.functional.normalize(self.backbone.encode_image(pixels) + 1, dim=-1)

    plain = ImagesToLogits(coop(NAMES))
    pixels = images(2, backbone())
    with torch.no_grad():
        before = plain(pixels)
        monkeypatch.setattr(CoOp, "encode_images", doubled, raising=False)
        learner = coop(NAMES)
        expected = learner(doubled(learner, pixels)).logits
        torch.testing.assert_close(ImagesToLogits(learner)(pixels), expected)
    assert not torch.allclose(before, expected, atol=1e-2)


@pytest.mark.parametrize(
    ("name", "form", "message"),
    [
        ("cocoop", "classifier", "got 'cocoop', whose text is conditioned on the image"),
        ("cocoop", "model", "got 'cocoop', whose text is conditioned on the image"),
        ("cocoop", "onnx", "got 'cocoop', whose text is conditioned on the image"),
        ("tip_adapter", "classifier", "got 'tip_adapter', whose are not; export it with --to onnx"),
        ("tip_adapter_f", "model", "got 'tip_adapter_f', whose are not; export it with --to onnx"),
        ("clip_adapter", "classifier", "got 'clip_adapter', whose are not; export it with --to onnx"),
        ("linear_probe", "model", "got 'linear_probe', whose rows have lengths of their own"),
        ("lp_plus_plus", "model", "got 'lp_plus_plus', whose rows have lengths of their own"),
    ],
)
def test_forms_that_a_method_has_not_are_refused_by_name(
    name: str, form: Any, message: str, tmp_path: Path
) -> None:
    prompt = saved(learners()[name], tmp_path / "prompt")
    with pytest.raises(UserError, match=message) as caught:
        export(prompt, form, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["prompt"]


def test_prompts_in_the_image_tower_are_neither_a_matrix_nor_a_plain_model(tmp_path: Path) -> None:
    prompt = saved(MaPLe(backbone(), NAMES, ContextOptions(2)), tmp_path / "prompt")
    with pytest.raises(UserError, match=r"leaves the image tower as it is, got 'maple'.*--to onnx"):
        export(prompt, "classifier", tmp_path / "out")
    with pytest.raises(UserError, match=r"image tower is a standard one, got 'maple'.*--to onnx"):
        export(prompt, "model", tmp_path / "out")
    with pytest.raises(ValueError, match="image tower's form, got 'maple'"):
        MaPLe(backbone(), NAMES, ContextOptions(2)).model_state()


def test_lora_is_a_matrix_where_it_leaves_the_images_alone_and_else_onnx(tmp_path: Path) -> None:
    learner: Lora
    options = (LoraOptions(rank=3, towers="text"), LoraOptions(rank=3))
    for towers, where in zip(("text", "both"), options, strict=True):
        learner = Lora(backbone(), NAMES, TEMPLATES, where)
        for number, parameter in enumerate(learner.parameters()):
            parameter.data.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
        saved(learner, tmp_path / towers)
        if towers == "text":
            export(tmp_path / towers, "classifier", tmp_path / "out")
            matrix, _ = read_classifier(tmp_path / "out" / "classifier.safetensors")
            torch.testing.assert_close(matrix, learner.text_features().detach())
    with pytest.raises(UserError, match="leaves the image tower as it is, got 'lora'"):
        export(tmp_path / "both", "classifier", tmp_path / "none")
    pixels = images(9, backbone())
    with torch.no_grad():
        features = learner.encode_images(pixels)
        assert (features - backbone().encode_image(pixels)).abs().max() > 1e-2
        torch.testing.assert_close(ImagesToLogits(learner.eval())(pixels), learner(features).logits)


def test_rows_that_do_not_make_the_logits_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = learners()["tip_adapter"]
    monkeypatch.setattr(TipAdapter, "classifier_rows", Learner.classifier_rows)  # as if it had forgotten
    with pytest.raises(UserError, match="got 'tip_adapter', whose are not"):
        linear_rows(learner)


def test_mistakes_are_told_before_any_weights_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = saved(learners()["linear_probe"], tmp_path / "prompt")

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(exporting, "from_pretrained", fail)
    (tmp_path / "names.txt").write_text("bird\n")
    with pytest.raises(UserError, match="class names that 'linear_probe' was learned on"):
        export(prompt, "classifier", tmp_path / "out", tmp_path / "names.txt")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    with pytest.raises(UserError, match=r"new or empty folder to write to, got .*full"):
        export(prompt, "classifier", tmp_path / "full")
    with pytest.raises(UserError, match=r"Expected the folder of a learned prompt .*; name .*prompt\."):
        export(tmp_path, "classifier", tmp_path / "out")


def test_too_many_words_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["export", "prompt", "--to", "onnx", "out", "more"])
    assert "Expected one prompt and one output, got 3: prompt, out, more." in capsys.readouterr().err


def test_names_that_a_tokenizer_could_not_tell_apart_are_refused(tmp_path: Path) -> None:
    prompt = saved(coop(("red dog", "red  dog")), tmp_path / "prompt")
    with pytest.raises(UserError, match="names that differ for --to model, got 'red dog' more than once"):
        export(prompt, "model", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export(prompt, "classifier", tmp_path / "out")


def test_a_missing_package_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"package onnx for ONNX files.*pip install 'cma_tune\[export\]'"):
        write_onnx(coop(NAMES), tmp_path, {})
