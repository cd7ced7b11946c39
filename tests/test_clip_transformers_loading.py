"""Where transformers' models come from: names and folders, what is refused before and while loading."""

from __future__ import annotations

import copy
import json
import logging
import socket
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import CLASS_NAMES, FAMILIES, preprocessing, tiny_backbone
from safetensors.torch import load_file, save_file
from tiny_tokenizers import tiny_plain_tokenizer
from torch import nn
from transformers_folders import write_family

from cma_tune.clip.backbone import Backbone, check_backbone_name, load_backbone
from cma_tune.clip.preprocessing import processor_preprocessing
from cma_tune.errors import UserError
from cma_tune.learners import CoOp, from_pretrained, save_prompt
from cma_tune.learners.coop import ContextOptions

torch.set_num_threads(1)


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refused(folder: Path) -> str:
    """The one sentence that a folder is refused with."""
    with pytest.raises(UserError) as error:
        load_backbone(f"transformers-dir:{folder}")
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", ["transformers:openai/clip-vit-base-patch32", "transformers:google/siglip2"])
def test_hub_names_pass_before_loading(name: str) -> None:
    check_backbone_name(name)


@pytest.mark.parametrize(
    "name", ["transformers:", "transformers:one", "transformers:/a/b", "transformers:../x"]
)
def test_what_is_no_hub_name_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"'transformers:ORG/REPO', got .*'transformers-dir:PATH'"):
        check_backbone_name(name)


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        ("config.json", "Expected a folder with config.json at"),
        ("model.safetensors", r"Expected weights \(\*.safetensors\)"),
        ("tokenizer*", "Expected a tokenizer"),
        ("preprocessor_config.json", "Expected an image processor"),
    ],
)
def test_an_incomplete_folder_is_refused_before_loading(missing: str, sentence: str, tmp_path: Path) -> None:
    folder = write_family(tmp_path)
    for path in folder.glob(missing):
        path.unlink()
    if missing == "model.safetensors":  # weights that would have to be unpickled are none
        torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=sentence):
        check_backbone_name(f"transformers-dir:{folder}")


def test_a_model_without_images_is_refused_before_loading(tmp_path: Path) -> None:
    folder = write_family(tmp_path)
    config = transformers.BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    config.save_pretrained(folder)
    with pytest.raises(UserError, match="without text_config, vision_config"):
        check_backbone_name(f"transformers-dir:{folder}")


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    """transformers would go on with random ones and a warning."""
    weights = write_family(tmp_path) / "model.safetensors"
    state = load_file(weights)
    del state["text_model.encoder.layers.1.self_attn.q_proj.weight"], state["visual_projection.weight"]
    save_file(state, weights, metadata={"format": "pt"})
    message = refused(tmp_path)
    assert "all weights of a CLIPModel" in message
    assert "layers.1.self_attn.q_proj.weight and 1 more" in message


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    weights = write_family(tmp_path) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    assert "Expected to load backbone" in refused(tmp_path)


def test_code_from_a_folder_is_never_run(tmp_path: Path) -> None:
    trap = tmp_path / "executed"
    folder = write_family(tmp_path / "clip")
    (folder / "trap.py").write_text(f"open({str(trap)!r}, 'w').close()\n")
    change_json(folder / "config.json", auto_map={"AutoConfig": "trap.Config"}, model_type="own")
    assert "Expected to load backbone" in refused(folder)
    assert not trap.exists()


def test_images_of_another_size_than_the_towers_are_refused(tmp_path: Path) -> None:
    size = {"height": 40, "width": 40}
    change_json(
        write_family(tmp_path) / "preprocessor_config.json", size={"shortest_edge": 40}, crop_size=size
    )
    assert "Expected images of 32×32" in refused(tmp_path) and "40×40" in refused(tmp_path)


def test_half_precision_files_are_computed_in_single(tmp_path: Path) -> None:
    family = FAMILIES["transformers-clip"]
    tokenizer = tiny_plain_tokenizer(family.tokenizer)
    folder = write_family(tmp_path)
    model: Any = tiny_backbone("transformers-clip", torch.float32).model
    halved = transformers.CLIPModel(model.config).half()
    halved.load_state_dict(model.state_dict())
    halved.save_pretrained(folder)
    backbone = load_backbone(f"transformers-dir:{folder}")
    assert {parameter.dtype for parameter in backbone.parameters()} == {torch.float32}
    assert len(tokenizer.tokenizer) == backbone.tower.vocabulary_size


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"resample": 0}, "bilinear or bicubic resizing .* got resample 0"),
        ({"rescale_factor": 1 / 127.5}, "pixels scaled to 0..1"),
        ({"do_rescale": False}, "pixels scaled to 0..1"),
        ({"do_resize": False}, "images resized to one height and width"),
        ({"do_center_crop": False}, "shortest_edge.* and no crop"),
        ({"crop_size": {"height": 28, "width": 28}}, "and crop_size"),
        ({"size": {"height": 40, "width": 40}}, "and crop_size"),
    ],
)
def test_processors_without_a_counterpart_are_refused(changes: dict[str, Any], sentence: str) -> None:
    plain = {
        **{"size": {"shortest_edge": 32}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}},
        **{"resample": 3, "image_mean": [0.5] * 3, "image_std": [0.25] * 3, "rescale_factor": 1 / 255},
    }
    assert processor_preprocessing(plain).size == (32, 32)
    with pytest.raises(UserError, match=sentence) as error:
        processor_preprocessing({**plain, **changes}, "odd-one")
    assert "'odd-one'" in str(error.value)


def test_older_processors_write_plain_numbers() -> None:
    older = {"size": 32, "crop_size": 32, "do_center_crop": True, "do_normalize": False, "resample": 2}
    made = processor_preprocessing(older)
    assert (made.size, made.resize_mode, made.interpolation) == ((32, 32), "shortest", "bilinear")
    assert (made.mean, made.std) == ((0.0,) * 3, (1.0,) * 3)


def refused_model(model: nn.Module, family: str = "transformers-clip") -> str:
    like = tiny_backbone(family, torch.float32)
    tokenizer: Any = like.tokenizer._tokenizer
    with pytest.raises(UserError) as error:
        Backbone(model, tokenizer, like.transform, "odd-one", preprocessing=preprocessing(family))
    assert "'odd-one'" in str(error.value)
    return str(error.value)


def own_model(family: str = "transformers-clip") -> Any:
    return copy.deepcopy(tiny_backbone(family, torch.float32).model)


def test_a_tower_that_works_in_another_way_is_refused() -> None:
    """Its parts have the same names, but its attention is sharper than theirs."""
    model = own_model()
    for layer in model.text_model.encoder.layers:
        layer.self_attn.scale *= 3
    assert "CLIPModel, whose text features differ by" in refused_model(model)


def test_a_tower_built_in_another_way_is_refused() -> None:
    model = own_model()
    del model.text_model.encoder.layers[0].self_attn.q_proj
    assert "without q_proj" in refused_model(model)
    model = own_model()
    del model.text_model.final_layer_norm
    assert "without final_layer_norm" in refused_model(model)


def test_a_tower_that_pools_what_nobody_knows_is_refused() -> None:
    model = own_model("transformers-siglip")
    forward = model.text_model.forward

    def pooled_in_the_middle(**inputs: Any) -> Any:
        output = forward(**inputs)
        output.pooler_output = model.text_model.head(output.last_hidden_state[:, 1])
        return output

    model.text_model.forward = pooled_in_the_middle
    assert "SiglipTextModel, which does not" in refused_model(model, "transformers-siglip")


def test_images_of_any_shape_are_refused() -> None:
    """SigLIP 2's NaFlex form."""
    common = {"hidden_size": 12, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    config = transformers.Siglip2Config(
        text_config={**common, "vocab_size": 200, "max_position_embeddings": 24, "projection_size": 12},
        vision_config={**common, "num_patches": 4, "patch_size": 8},
    )
    message = refused_model(transformers.Siglip2Model(config))
    assert "Siglip2Model" in message and "fixed-resolution" in message


def test_without_a_network_the_hub_is_given_up_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: Any
) -> None:
    from huggingface_hub import constants

    asked: list[str] = []

    def without_answer(host: Any, *rest: Any, **more: Any) -> Any:
        asked.append(str(host))
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", without_answer)
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    offline = constants.HF_HUB_OFFLINE
    with caplog.at_level(logging.INFO), pytest.raises(UserError, match="Hub can't be reached") as error:
        load_backbone("transformers:nobody/absent")
    assert "\n" not in str(error.value) and "'transformers-dir:…'" in str(error.value)
    assert len(asked) == 1, "the Hub's client would try six times, half a minute in all"
    assert not caplog.records and not capsys.readouterr().err, "the error says it all"
    assert offline == constants.HF_HUB_OFFLINE
    asked.clear()
    folder = write_family(tmp_path / "clip")
    capsys.readouterr()
    load_backbone(f"transformers-dir:{folder}")
    assert not asked and not capsys.readouterr().err


def test_a_saved_prompt_brings_its_backbone(tmp_path: Path) -> None:
    backbone = load_backbone(f"transformers-dir:{write_family(tmp_path / 'clip')}", "openai")
    assert backbone.pretrained is None
    learner = CoOp(backbone, CLASS_NAMES, ContextOptions(4), seed=3)
    save_prompt(learner, tmp_path / "prompt")
    again = from_pretrained(tmp_path / "prompt")
    assert again.backbone is not backbone
    torch.testing.assert_close(again.text_features(), learner.text_features())
