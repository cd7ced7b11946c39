"""Domain generalisation over miniatures of ImageNet and its variants, from training and from a prompt."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_runs import backbone, few_shot_config

from cma_tune.config import OptimConfig
from cma_tune.data.miniature import write_miniature
from cma_tune.learners import from_pretrained
from cma_tune.options import DomainGeneralizationConfig
from cma_tune.protocols.cross_dataset import cross_dataset
from cma_tune.records import load_record

VARIANTS = {  # folder of the images, and how many classes
    "imagenetv2": ("imagenetv2/imagenetv2-matched-frequency-format-val", 1000),
    "imagenet_sketch": ("imagenet-sketch/images", 1000),
    "imagenet_a": ("imagenet-adversarial/imagenet-a", 200),
    "imagenet_r": ("imagenet-rendition/imagenet-r", 200),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for name in ("imagenet", *VARIANTS):
        write_miniature(name, root, (1, 0, 1))
    return root


def by_hand(prompt: Path, images: Path, names: dict[str, str]) -> list[float]:
    """Accuracy of a prompt and of zero-shot over the image files, whose folders say the class.

    By WordNet id, or by number in ImageNetV2.
    """
    ids = sorted(folder.name for folder in images.iterdir() if folder.is_dir())
    by_number = all(one.isdigit() for one in ids)
    wnids = list(names) if by_number else ids
    label_of = {folder: int(folder) if by_number else wnids.index(folder) for folder in ids}
    called = [names[wnid].replace("_", " ") for wnid in wnids]
    files = sorted(images.rglob("*.JPEG"))
    labels = torch.tensor([label_of[file.parent.name] for file in files])
    with torch.no_grad():
        plain = backbone().encode_texts([f"a photo of a {name}." for name in called])
        learned = from_pretrained(prompt, backbone()).for_classes(called).text_features()
        pixels = torch.stack([backbone().transform(Image.open(file).convert("RGB")) for file in files])
        features = backbone().encode_image(pixels)
    return [
        100 * float(((features @ text.T).argmax(dim=1) == labels).double().mean())
        for text in (learned, plain)
    ]


def test_from_training_and_from_a_saved_prompt(
    data: Path, tmp_path: Path, fits: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cma_tune.build.load_backbone", lambda *_: backbone())
    optim = OptimConfig(epochs=2, batch_size=256, lr=0.05)
    one = few_shot_config(
        tmp_path / "runs", dataset="imagenet", data_root=str(data), shots=[1], weights=[0.3], optim=optim
    )
    content: dict[str, Any] = {entry.name: getattr(one, entry.name) for entry in fields(one)}
    config = DomainGeneralizationConfig(**content)
    (record,) = cross_dataset(config)
    (path,) = (tmp_path / "runs/domain-generalization").rglob("record.json")
    assert load_record(path) == record and path.parent.parent.parent.name == "shots1"
    (prompt,) = (tmp_path / "runs/few-shot").rglob("prompt")
    names = dict(line.split(" ", 1) for line in (data / "imagenet/classnames.txt").read_text().splitlines())
    for name, (folder, classes) in VARIANTS.items():
        assert record.dataset["targets"][name]["classes"] == classes
        assert len(record.per_class[name]) == classes
        figures = [record.figures[f"{kind}: {name}"] for kind in ("accuracy", "zero_shot_accuracy")]
        assert figures == pytest.approx(by_hand(prompt, data / folder, names))
    accuracies = [record.figures[f"accuracy: {name}"] for name in VARIANTS]
    assert record.figures["mean_accuracy"] == pytest.approx(sum(accuracies) / 4) and sum(accuracies) > 0
    assert record.training["setting"] == "inductive" and record.dataset["name"] == "imagenet"
    # From the prompt alone, with neither ImageNet's images nor training.
    (data / "imagenet/images").rename(data / "imagenet/elsewhere")
    saved = replace(config, prompt=str(prompt), output=str(tmp_path / "saved"))
    (again,) = cross_dataset(saved)
    assert again.figures == record.figures and again.per_class == record.per_class and len(fits) == 1
    assert not (tmp_path / "saved/few-shot").exists()
