"""Figures: drawn where there is a curve, from the numbers of the tables, without touching pyplot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from PIL import Image
from test_report_tables import accuracy, base_to_novel, few_shot, zero_shot

from cma_tune.config import BaseToNovelConfig, FewShotConfig, LossConfig
from cma_tune.records import Record
from cma_tune.report import draw_figures
from cma_tune.report.drawing import COLORS, DPI, HEIGHT, WIDTH
from cma_tune.report.figures import _few_shot_figure, _weight_curves, _weight_figure, _weight_panels


def sweep(
    weights: tuple[float, ...] = (0.0, 0.3, 0.7), config: BaseToNovelConfig | None = None
) -> list[Record]:
    return [one for w in weights for one in base_to_novel([(80 + w, 60), (82 - 9 * w, 64)], w, config)]


def pixels(path: Path) -> np.ndarray[Any, Any]:
    with Image.open(path) as image:
        image.load()
        return np.asarray(image.convert("RGB"))


def rgb(color: str) -> list[int]:
    return [int(color[i : i + 2], 16) for i in (1, 3, 5)]


def test_one_file_for_each_dataset_and_backbone_with_the_lines_in_it(tmp_path: Path) -> None:
    other = FewShotConfig(dataset="folder:/data/my flowers", backbone="RN50", pretrained="openai")
    records = [
        zero_shot(55.0),
        *few_shot({1: [70.0, 72.0], 4: [80.0, 83.0]}),
        *few_shot({1: [71.0, 74.0], 4: [82.0, 83.0]}, weight=0.8),
        *few_shot({2: [71.0], 16: [82.0]}, config=other),
        *sweep(),
        *sweep(config=BaseToNovelConfig(dataset="shapes", shots=[4])),
    ]
    paths = draw_figures(records, tmp_path / "new" / "folder")
    assert sorted(path.name for path in paths) == [
        "few_shot-digits-embedded.png",
        "few_shot-folder__data_my_flowers-RN50_openai.png",
        "weights-16shots-digits-embedded.png",
        "weights-4shots-shapes-embedded.png",
    ]
    assert sorted(paths) == sorted((tmp_path / "new" / "folder").iterdir())  # and no temporary file
    for path in paths:
        image = pixels(path)
        assert image.shape[1] == round(WIDTH * DPI) and image.shape[0] >= HEIGHT * DPI
        lines = 1 if "RN50" in path.name else 2 if path.name.startswith("few_shot") else 3
        for number, color in enumerate(COLORS[:4]):
            drawn = (np.abs(image.astype(int) - rgb(color)) < 3).all(-1).sum()
            assert (drawn > 500) == (number < lines), (path.name, color, drawn)


def test_nothing_is_drawn_where_there_is_no_curve(tmp_path: Path) -> None:
    assert draw_figures([zero_shot(55.0), *base_to_novel([(80, 60)], 0.5)], tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_few_shot_curves_show_the_means_and_intervals_of_the_table() -> None:
    table = accuracy([zero_shot(55.0), *few_shot({1: [70.0, 72.0], 4: [80.0, 84.0]})])
    figure: Any = _few_shot_figure(table)
    (axes,) = figure.axes
    ((line, _, (bars,)),) = axes.containers
    assert list(line.get_ydata()) == [71.0, 82.0]
    half = [1.96 * 1 / 2**0.5, 1.96 * 2 / 2**0.5]
    ends = [(segment[0][1], segment[1][1]) for segment in bars.get_segments()]
    assert ends == [pytest.approx((71 - half[0], 71 + half[0])), pytest.approx((82 - half[1], 82 + half[1]))]
    reference = next(one for one in axes.lines if one.get_label() == "Zero-shot")
    assert list(reference.get_ydata()) == [55.0, 55.0]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "4"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("training images per class (shots)", "accuracy (%)")
    assert figure.get_suptitle() == "Few-shot: dataset digits, backbone embedded"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["Zero-shot", "CoOp"]
    assert figure.legends[0].get_title().get_text() == "error bars: 95 % interval over 2 seeds"


def test_a_point_of_a_single_seed_has_no_bar_and_numbers_of_seeds_are_said() -> None:
    figure: Any = _few_shot_figure(accuracy(few_shot({1: [70.0, 72.0], 4: [80.0]})))
    _, _, (bars,) = figure.axes[0].containers[0]
    drawn = [segment for segment in bars.get_segments() if len(segment) and np.isfinite(segment).all()]
    assert [segment[0][0] for segment in drawn] == [1.0]
    assert figure.legends[0].get_title().get_text() == "error bars: 95 % interval over 1 to 2 seeds"
    alone: Any = _few_shot_figure(accuracy(few_shot({1: [70.0]})))
    assert alone.legends[0].get_title().get_text() == "one seed: no intervals"


def test_the_legend_covers_no_curve_and_nothing_is_cut_off() -> None:
    weights = [number / 20 for number in range(21)]
    many = [one for w in weights for one in few_shot({1: [70.0 + w, 71.0], 16: [80.0, 81.0 + w]}, weight=w)]
    figure: Any = _few_shot_figure(accuracy(many))
    figure.canvas.draw()
    (axes,), (legend,) = figure.axes, figure.legends
    assert len(legend.get_texts()) == 21
    assert not legend.get_window_extent().overlaps(axes.get_tightbbox())
    width, height = figure.canvas.get_width_height()
    for artist in (legend, figure._suptitle, axes.xaxis.label, axes.yaxis.label):
        box = artist.get_window_extent()
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
    looks = {(one.lines[0].get_color(), one.lines[0].get_linestyle()) for one in axes.containers}
    assert len(looks) == 21  # no two methods look the same


def test_lambda_curves_show_base_novel_and_h_with_a_panel_for_each_method() -> None:
    table = accuracy([*sweep(), *sweep(config=BaseToNovelConfig(learner="cocoop"))])
    figure: Any = _weight_figure(table, _weight_panels(table))
    first, second = figure.axes
    assert (first.get_title(), second.get_title()) == ("CoOp", "CoCoOp")
    base, novel, harmonic = (container.lines[0] for container in first.containers)
    assert list(base.get_xdata()) == [0.0, 0.3, 0.7]
    assert list(base.get_ydata()) == pytest.approx([81.0, (80.3 + 79.3) / 2, (80.7 + 75.7) / 2])
    assert list(novel.get_ydata()) == [62.0, 62.0, 62.0]
    means = (80.7 + 75.7) / 2, 62.0
    assert harmonic.get_ydata()[2] == pytest.approx(2 * means[0] * means[1] / sum(means))


def test_few_shot_lambda_curves_need_three_lambda_at_the_same_shots(tmp_path: Path) -> None:
    # Three λ at 4 and 16 shots, two at 1 shot; λ = 0 has other shots beside them, and so other epochs.
    by_weight = {
        0.0: {1: [50.0, 52.0], 2: [55.0], 4: [60.0, 62.0], 16: [80.0, 80.0]},
        0.3: {1: [51.0, 53.0], 4: [64.0, 66.0], 16: [79.0, 81.0]},
        0.7: {4: [58.0, 60.0], 16: [70.0, 74.0]},
    }
    records = [zero_shot(40.0), *(one for w, by in by_weight.items() for one in few_shot(by, weight=w))]
    table = accuracy(records)
    panels = _weight_panels(table)
    figure: Any = _weight_figure(table, panels)
    (axes,) = figure.axes
    four, sixteen = axes.containers
    assert [container.get_label() for container in (four, sixteen)] == ["4 shots", "16 shots"]
    assert list(four.lines[0].get_xdata()) == list(sixteen.lines[0].get_xdata()) == [0.0, 0.3, 0.7]
    assert list(four.lines[0].get_ydata()) == [61.0, 65.0, 59.0]
    assert list(sixteen.lines[0].get_ydata()) == [80.0, 80.0, 72.0]
    ends = [(part[0][1], part[1][1]) for part in four.lines[2][0].get_segments()]
    half = 1.96 / 2**0.5
    assert ends == [pytest.approx((mean - half, mean + half)) for mean in (61.0, 65.0, 59.0)]
    assert figure.get_suptitle() == "Few-shot: dataset digits, backbone embedded, CoOp"
    names = ["few_shot-digits-embedded.png", "few_shot_weights-digits-embedded.png"]
    assert [path.name for path in draw_figures(records, tmp_path)] == names
    fewer = [one for one in records if one.weight < 0.7]
    assert [path.name for path in draw_figures(fewer, tmp_path)] == names[:1]


def test_a_line_has_its_color_in_every_panel_and_a_place_in_the_legend() -> None:
    weights = (0.0, 0.3, 0.7)
    records = [one for w in weights for one in few_shot({4: [60.0], 16: [80.0]}, weight=w)]
    cocoop = FewShotConfig(learner="cocoop")
    records += [one for w in weights for one in few_shot({1: [50.0], 16: [80.0]}, weight=w, config=cocoop)]
    table = accuracy(records)
    figure: Any = _weight_figure(table, _weight_panels(table))
    looks = [{c.get_label(): c.lines[0].get_color() for c in axes.containers} for axes in figure.axes]
    assert looks == [
        {"4 shots": COLORS[1], "16 shots": COLORS[2]},
        {"1 shot": COLORS[0], "16 shots": COLORS[2]},
    ]
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"1 shot", "4 shots", "16 shots"}


def test_lambda_zero_starts_the_curve_of_every_form_of_the_loss() -> None:
    release = BaseToNovelConfig(loss=LossConfig("mean", True))
    table = accuracy([*sweep((0.0, 0.5)), *sweep((0.7, 1.0), release)])
    curves = {name: [row.group.weight for row in rows] for name, rows in _weight_curves(table.rows, 2)}
    assert curves == {
        "CoOp (normalize=false, reduction=sum)": [0.0, 0.5],
        "CoOp (normalize=true, reduction=mean)": [0.0, 0.7, 1.0],
    }


def test_drawing_leaves_pyplot_and_its_settings_alone(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    code = (
        "import sys\nsys.path.insert(0, sys.argv[1])\nfrom pathlib import Path\n"
        "from test_report_figures import sweep, draw_figures\n"
        "assert draw_figures(sweep(), Path(sys.argv[2]))\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path)], check=True)
    draw_figures(sweep(), tmp_path)
    assert dict(matplotlib.rcParams) == before
