"""Whole runs on transformers' models: the command line from training to labels, and every method."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import get_args

import pytest
import torch
from PIL import Image
from tiny_runs import few_shot_config
from transformers_folders import write_family

from cma_tune.build import Setup
from cma_tune.cli import main
from cma_tune.clip.backbone import Backbone, load_backbone
from cma_tune.config import OptimConfig
from cma_tune.learners import from_pretrained
from cma_tune.method_facts import TRAINS_IMAGES, UNTRAINED
from cma_tune.method_options import LearnerName
from cma_tune.protocols.few_shot import few_shot


@pytest.mark.parametrize("learner", ["coop", "cocoop"])
def test_the_command_line_from_training_to_labels(
    learner: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_family(tmp_path / "tiny clip")
    settings = ["--optim.epochs=2", "--optim.batch_size=7", "--shots=2", "--context.tokens=3"]
    typed = ["--dataset=digits", f"--backbone=transformers-dir:{folder}", f"--output={tmp_path / 'runs'}"]
    main(["few-shot", f"--learner={learner}", "--weights=0.5", "--loss.reduction=mean", *typed, *settings])
    (record,) = (tmp_path / "runs").rglob("record.json")
    assert "tiny_clip" in record.parts, "called by its name, not by its whole path"
    assert json.loads(record.read_text())["backbone"]["name"] == f"transformers-dir:{folder}"
    names = from_pretrained(record.parent / "prompt").class_names
    image = tmp_path / "noise.png"
    Image.effect_noise((40, 50), 90).convert("RGB").save(image)
    capsys.readouterr()
    main(["predict", str(image), "--prompt", str(record.parent / "prompt"), "--top", "2"])
    line = capsys.readouterr().out.strip()
    best = line.removeprefix(f"{image}\t").split("  ")[0]
    assert best.rpartition(" ")[0] in names
    main(["words", "--prompt", str(record.parent / "prompt"), "--count", "1"])
    assert len(capsys.readouterr().out.strip().splitlines()) == 3
    main(["report", str(tmp_path / "runs")])
    shown = capsys.readouterr().out
    assert "tiny clip" in shown and "transformers-dir" not in shown


@cache
def family_backbone(family: str, folder: Path) -> Backbone:
    return load_backbone(f"transformers-dir:{write_family(folder, family)}")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


@pytest.mark.parametrize(
    ("family", "learner"),
    [
        *(("transformers-clip", name) for name in get_args(LearnerName)),
        *(
            ("transformers-siglip", name)
            for name in ("coop", "tcp", "clip_adapter", "vpt", "maple", "promptsrc")
        ),
    ],
)
def test_every_method_runs(
    family: str, learner: LearnerName, folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Some of PromptSRC's are longer than the tiny towers' context.
    monkeypatch.setattr("cma_tune.methods.diverse_templates", lambda: ["a {}.", "the {}."])
    backbone = family_backbone(family, folders / family)
    config = few_shot_config(
        tmp_path,
        learner=learner,
        shots=[2],
        optim=OptimConfig(epochs=1, batch_size=None if learner == "lp_plus_plus" else 10, lr=0.01),
        weights=[0.0] if learner in UNTRAINED else [0.5],
        features_dir=str(folders / "features"),
        train_features="live" if learner in TRAINS_IMAGES else "stored",
    )
    (record,) = few_shot(config, Setup(config, backbone))
    assert record.backbone["weights"] == backbone.weights_digest
    again = from_pretrained(next(tmp_path.rglob("card.json")).parent, backbone)
    with torch.no_grad():
        output = again(torch.randn(2, 3, *backbone.preprocessing.size))
    assert output.logits.shape == (2, 10) and output.logits.isfinite().all()
    assert few_shot(config, Setup(config, backbone)) == [record]
