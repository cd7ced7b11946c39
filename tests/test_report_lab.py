"""Figures of the laboratory: drawn from curves and record, with theory's values as lines."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from test_report_figures import pixels

from cma_tune.companion_options import GrokkingConfig, LabConfig
from cma_tune.errors import UserError
from cma_tune.records import Record, save_record
from cma_tune.report import report
from cma_tune.report.curves import LIMIT
from cma_tune.report.drawing import COLORS
from cma_tune.report.lab import draw_lab_figures, lab_figure, leave_figure

CLASSES = 10


def collapse(number: int, prefix: str = "") -> dict[str, float]:
    return {
        f"{prefix}accuracy": 50.0 + number,
        f"{prefix}feature_entropy": 1.0 + number / 10,
        f"{prefix}classifier_entropy": 2.0,
        f"{prefix}mutual_information": 0.5 + number / 10,
        f"{prefix}mutual_information_ratio": 0.3 + number / 20,
        f"{prefix}entropy_difference_ratio": 0.5 - number / 20,
        f"{prefix}silhouette": 0.1 * number,
        f"{prefix}davies_bouldin": 2.0 - 0.2 * number,
    }


CURVES: dict[str, list[dict[str, float]]] = {
    "dynamics": [{"step": 10.0 * n, **collapse(n)} for n in range(1, 6)],
    "temperature": [{"temperature": float(t), **collapse(t)} for t in (1, 2, 4)],
    "connectivity": [
        {"rate": rate, "omega": omega, "own_statistics": own, **collapse(int(4 * omega + own))}
        for rate in (0.03, 0.003)
        for omega, own in ((0.0, 0.0), (0.0, 1.0), (0.5, 0.0), (1.0, 0.0), (1.0, 1.0))
    ],
    "grokking": [
        {"epoch": float(10**n), **collapse(n, "train_"), **collapse(n + 1, "test_")} for n in range(4)
    ],
}
PANELS = {"dynamics": 3, "temperature": 6, "connectivity": 3, "grokking": 3}


def finished(folder: Path, experiment: Any, seed: int = 1, **changes: Any) -> tuple[Path, Record]:
    """Folder and record of an experiment that was never run, with its curves."""
    config = LabConfig(experiment=experiment, seeds=[seed], network="small-cnn", **changes)
    if experiment == "grokking":
        config = replace(config, dataset="modular-addition-10", grokking=GrokkingConfig(modulus=CLASSES))
    record = Record(
        run=hashlib.sha256(str(asdict(config)).encode()).hexdigest(),
        protocol="lab",
        config=asdict(config),
        dataset={"name": config.dataset, "classes": CLASSES},
        backbone={"name": "small-cnn"},
        figures={},
        per_class={},
        training={"class_names": [f"class {number}" for number in range(CLASSES)]},
    )
    folder = folder / record.run[:8]
    save_record(folder, record)
    (folder / "curves.json").write_text(json.dumps(CURVES[experiment]))
    if experiment == "temperature":
        generator = torch.Generator().manual_seed(0)
        names = [f"{one:g}" for one in config.temperatures if one in (1.0, 4.0)]
        points = {name: torch.randn(60, 2, generator=generator) for name in names}
        save_file({**points, "labels": torch.arange(60) % CLASSES}, folder / "points.safetensors")
    return folder, record


def drawn(folder: Path, experiment: str) -> Any:
    return lab_figure(*finished(folder, experiment))


def limits(axes: Any) -> dict[str, float]:
    """Colour and height of every dotted line across the panel."""
    across = [one for one in axes.lines if one.get_linestyle() == ":" and len(one.get_xdata()) == 2]
    return {one.get_color(): float(one.get_ydata()[0]) for one in across}


@pytest.mark.parametrize("experiment", list(CURVES))
def test_every_experiment_has_a_figure_that_holds_all(tmp_path: Path, experiment: str) -> None:
    folder, _ = finished(tmp_path, experiment)
    path = leave_figure(folder)
    assert path == folder / "figure.png" and pixels(path).min() < 50
    figure = drawn(tmp_path, experiment)
    assert len(figure.axes) == PANELS[experiment]
    figure.canvas.draw()
    width, height = figure.canvas.get_width_height()
    texts = [text for axes in figure.axes for text in (*axes.texts, axes.title, axes.xaxis.label)]
    for artist in (*texts, figure._suptitle, figure.legends[0]):
        box = artist.get_window_extent()
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, artist
    legend = figure.legends[0].get_window_extent()
    assert not any(legend.overlaps(axes.get_tightbbox()) for axes in figure.axes)
    assert LIMIT in [text.get_text() for text in figure.legends[0].get_texts()]
    assert path.stat().st_size < 200_000


def test_a_single_temperature_has_a_single_picture_and_an_empty_place(tmp_path: Path) -> None:
    figure = lab_figure(*finished(tmp_path, "temperature", temperatures=[4.0]))
    assert [axes.get_title() for axes in figure.axes][4:] == ["t-SNE of the features, T = 4"]


def test_limits_are_the_closed_forms(tmp_path: Path) -> None:
    c = CLASSES
    entropy = math.log(c - 1)
    joint = ((2 * c - 3) * math.log(c - 1) - (c - 2) * math.log(c - 2)) / (c - 1)
    ratio = 1 / (c - 1) + (c - 2) * math.log(c - 2) / ((c - 1) * math.log(c - 1))
    _, entropies, ratios = drawn(tmp_path, "dynamics").axes
    assert limits(entropies) == pytest.approx({COLORS[0]: entropy, COLORS[2]: 2 * entropy - joint}, abs=1e-12)
    assert limits(ratios) == pytest.approx({COLORS[3]: ratio, COLORS[5]: 0.0}, abs=1e-12)
    _, of_features, silhouette, davies_bouldin, *_ = drawn(tmp_path, "temperature").axes
    found = [limits(axes) for axes in (of_features, silhouette, davies_bouldin)]
    assert found == [{COLORS[0]: pytest.approx(entropy)}, {COLORS[1]: 1.0}, {COLORS[2]: 0.0}]
    accuracy, mir, hdr = drawn(tmp_path, "connectivity").axes
    assert [limits(axes) for axes in (accuracy, mir, hdr)] == [
        {},
        {COLORS[6]: pytest.approx(ratio)},
        {COLORS[6]: 0.0},
    ]
    _, ratios, entropies = drawn(tmp_path, "grokking").axes
    assert limits(ratios) == pytest.approx({COLORS[3]: ratio, COLORS[5]: 0.0}, abs=1e-12)
    assert limits(entropies) == pytest.approx({COLORS[0]: entropy}, abs=1e-12)
    assert [text.get_text() for text in entropies.texts] == [f"ln(p−1) {entropy:.3f}"]


def test_axes_of_accuracy_do_not_blow_up_noise(tmp_path: Path) -> None:
    folder, record = finished(tmp_path, "dynamics")
    noise = [{**entry, "accuracy": 98.0 + number % 2} for number, entry in enumerate(CURVES["dynamics"])]
    for entries, span in ((noise, 5.0), ([{**e, "accuracy": 10.0 * e["step"]} for e in noise], 440.0)):
        (folder / "curves.json").write_text(json.dumps(entries))
        figure: Any = lab_figure(folder, record)
        low, high = figure.axes[0].get_ylim()
        assert high - low == pytest.approx(span)


def curve(axes: Any, label: str) -> list[tuple[float, float]]:
    (line,) = (one for one in axes.lines if one.get_label() == label)
    return list(zip(map(float, line.get_xdata()), map(float, line.get_ydata()), strict=True))


def test_curves_are_those_of_the_file(tmp_path: Path) -> None:
    accuracy, entropies, ratios = drawn(tmp_path, "dynamics").axes
    entries = CURVES["dynamics"]
    assert curve(accuracy, "accuracy") == [(e["step"], e["accuracy"]) for e in entries]
    assert curve(entropies, "H of features") == [(e["step"], e["feature_entropy"]) for e in entries]
    assert curve(ratios, "HDR") == [(e["step"], e["entropy_difference_ratio"]) for e in entries]

    accuracy, mir, _ = drawn(tmp_path, "connectivity").axes
    slow = [e for e in CURVES["connectivity"] if e["rate"] == 0.003]
    name = "its ends with the statistics of training (0.003)"
    assert curve(mir, "learning rate 0.003") == [
        (e["omega"], e["mutual_information_ratio"]) for e in slow if not e["own_statistics"]
    ]
    assert curve(accuracy, name) == [(e["omega"], e["accuracy"]) for e in slow if e["own_statistics"]]
    (ends,) = (line for line in accuracy.lines if line.get_label() == name)
    assert ends.get_linestyle() == "None" and ends.get_markerfacecolor() == "none"

    accuracy, ratios, _ = drawn(tmp_path, "grokking").axes
    assert accuracy.get_xscale() == ratios.get_xscale() == "log"
    for part in ("train", "test"):
        expected = [(e["epoch"], e[f"{part}_mutual_information_ratio"]) for e in CURVES["grokking"]]
        assert curve(ratios, f"MIR, {part}") == expected


def test_pictures_show_every_point_in_the_look_of_its_class(tmp_path: Path) -> None:
    *_, cold, hot = drawn(tmp_path, "temperature").axes
    assert [axes.get_title() for axes in (cold, hot)] == [f"t-SNE of the features, T = {t}" for t in (1, 4)]
    for axes in (cold, hot):
        assert sum(len(line.get_xdata()) for line in axes.lines) == 60
        looks = {(line.get_color(), line.get_marker()) for line in axes.lines}
        assert len(looks) == len(axes.lines) == CLASSES
        assert [text.get_text() for text in axes.texts] == [f"class {number}" for number in range(CLASSES)]


def test_what_is_undefined_leaves_a_gap_and_no_limit(tmp_path: Path) -> None:
    folder, record = finished(tmp_path, "dynamics")
    entries: list[dict[str, float]] = [dict(entry) for entry in CURVES["dynamics"]]
    del entries[1]["entropy_difference_ratio"]
    (folder / "curves.json").write_text(json.dumps(entries))
    record.dataset["classes"] = 2
    figure: Any = lab_figure(folder, record)
    _, entropies, ratios = figure.axes
    assert len(curve(ratios, "HDR")) == 4 and limits(ratios) == {}
    assert limits(entropies) == {COLORS[0]: 0.0, COLORS[2]: 0.0}


def test_report_draws_experiments_beside_everything_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for experiment in CURVES:
        finished(tmp_path / "runs", experiment)
    page = tmp_path / "page.html"
    report(str(tmp_path / "runs"), figures=str(tmp_path / "figures"), html=str(page))
    names = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert names == [
        "lab_connectivity-digits-small-cnn-seed1.png",
        "lab_dynamics-digits-small-cnn-seed1.png",
        "lab_grokking-modular-addition-10-small-cnn-seed1.png",
        "lab_temperature-digits-small-cnn-seed1.png",
    ]
    said = capsys.readouterr()
    assert said.out == "" and all(name in said.err for name in names)
    assert page.read_text().count("<figure") == 4


def test_experiments_of_one_name_do_not_overwrite_each_other(tmp_path: Path) -> None:
    results = [finished(tmp_path, "dynamics", seed) for seed in (1, 2)]
    results += [finished(tmp_path, "dynamics", 1, max_mi=0.1), finished(tmp_path, "dynamics", 1, labels=[40])]
    paths = draw_lab_figures(results, tmp_path / "figures")
    place = "lab_dynamics-digits-small-cnn"
    assert [path.stem for path in paths] == [
        f"{place}-seed1-{results[0][1].run[:8]}",
        f"{place}-seed2",
        f"{place}-seed1-{results[2][1].run[:8]}",
        f"{place}-40labels-seed1",
    ]
    for path in paths:
        with Image.open(path) as image:
            image.verify()


def test_an_experiment_without_its_files_is_named(tmp_path: Path) -> None:
    folder, record = finished(tmp_path, "temperature")
    (folder / "points.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"Expected points at .*points\.safetensors.*run the experiment"):
        lab_figure(folder, record)
    (folder / "curves.json").write_text("[]")
    with pytest.raises(UserError, match=r"Expected entries in .*curves\.json, got none"):
        lab_figure(folder, record)
    (folder / "curves.json").unlink()
    with pytest.raises(UserError, match="Expected the curves of an experiment at"):
        lab_figure(folder, record)
