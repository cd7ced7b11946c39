"""Figures of the laboratory's experiments, from the curves beside their records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cma_tune.errors import UserError
from cma_tune.files import read_json, slug, write_atomically
from cma_tune.records import FILE, Record, load_record
from cma_tune.report.curves import Curve, Limit, Panel, Scatter, draw_panel, draw_scatter
from cma_tune.report.drawing import finish, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from cma_tune.metrics import CollapseValues

PROTOCOL = "lab"
CURVES, POINTS, FIGURE = "curves.json", "points.safetensors", "figure.png"

DPI = 110
"""Pixels per inch; fewer than of other figures, which have fewer panels."""

ACCURACY_SPAN = 5.0
"""Points of accuracy that an axis covers at least."""

Entries = list[dict[str, float]]


def leave_figure(folder: Path) -> Path:
    """Draw the figure of one experiment beside its record.

    Raises:
        UserError: as `lab_figure`.
    """
    return _saved(lab_figure(folder, load_record(folder / FILE)), folder / FIGURE)


def draw_lab_figures(results: Sequence[tuple[Path, Record]], folder: Path) -> list[Path]:
    """Draw the figure of every experiment.

    Args:
        results: folders and records of experiments.
        folder: where the PNG files go; made if it is not there.

    Returns:
        Paths of the files.

    Raises:
        UserError: as `lab_figure`.
    """
    names = [_name(record) for _, record in results]
    taken = Counter(names)
    drawn = []
    for name, (where, record) in zip(names, results, strict=True):
        unique = name if taken[name] == 1 else f"{name}-{record.run[:8]}"
        drawn.append(_saved(lab_figure(where, record), folder / f"{unique}.png"))
    return drawn


def _saved(figure: Figure, path: Path) -> Path:
    write_atomically(path, partial(figure.savefig, format="png", dpi=DPI))
    return path


def _name(record: Record) -> str:
    config = record.config
    labels = f"-{config['labels'][0]}labels" if config["labels"][0] else ""
    place = f"{slug(str(config['dataset']))}-{slug(str(record.backbone['name']))}{labels}"
    return f"lab_{config['experiment']}-{place}-seed{record.seed}"


def lab_figure(folder: Path, record: Record) -> Figure:
    """The figure of one experiment.

    Args:
        folder: of the record, with the curves beside it.
        record: the experiment's.

    Raises:
        UserError: the curves are missing or damaged.
    """
    from cma_tune.metrics import collapse_values  # loads torch

    theory = collapse_values(int(record.dataset["classes"]))
    entries = read_json(folder / CURVES, "the curves of an experiment")
    if not isinstance(entries, list) or not entries:
        raise UserError(f"Expected entries in {folder / CURVES}, got none; run the experiment again.")
    experiment = str(record.config["experiment"])
    panels: list[Panel | Scatter] = [*PANELS[experiment](entries, theory)]
    if experiment == "temperature":
        panels += _pictures(folder, record)
    figure, all_axes = new_figure(len(panels), 2, rows=2 if len(panels) > 4 else 1, share_y=False)
    for axes, panel in zip(all_axes, panels, strict=True):
        if isinstance(panel, Scatter):
            draw_scatter(axes, panel)
        else:
            draw_panel(axes, panel)
    finish(figure, all_axes, _title(record), "", 5, width=140)
    return figure


def _title(record: Record) -> str:
    config, seed = record.config, f"seed {record.seed}"
    if config["experiment"] == "grokking":
        modulus, share = config["grokking"]["modulus"], config["grokking"]["train_share"]
        return f"Grokking: (a + b) mod {modulus}, {100 * share:g} % of the sums trained on, {seed}"
    labels = f", {config['labels'][0]} labels" if config["labels"][0] else ""
    centred = ", features centred" if config["interplay"]["center"] else ""
    what = {
        "dynamics": "Test images during supervised training",
        "temperature": "Test images after training with CE(z/T, y)",
        "connectivity": "Between two networks of one initialisation",
    }[config["experiment"]]
    return f"{what}: dataset {config['dataset']}, network {config['network']}{labels}{centred}, {seed}"


def _points(entries: Entries, x: str, y: str) -> list[tuple[float, float]]:
    return [(entry[x], entry[y]) for entry in entries if y in entry]


def _dynamics(entries: Entries, theory: CollapseValues) -> list[Panel]:
    def curve(label: str, key: str, number: int) -> Curve:
        return Curve(label, _points(entries, "step", key), number)

    x = "training step"
    entropies = [
        curve("H of features", "feature_entropy", 0),
        curve("H of classifier rows", "classifier_entropy", 1),
        curve("mutual information", "mutual_information", 2),
    ]
    return [
        Panel("accuracy", x, "accuracy (%)", [curve("accuracy", "accuracy", 6)], span=ACCURACY_SPAN),
        Panel(
            "matrix entropy",
            x,
            "nats",
            entropies,
            [
                Limit(f"ln(C−1) {theory.entropy:.3f}", theory.entropy, 0),
                Limit(f"MI {theory.mutual_information:.3f}", theory.mutual_information, 2),
            ],
        ),
        Panel(
            "ratios",
            x,
            "ratio",
            [curve("MIR", "mutual_information_ratio", 3), curve("HDR", "entropy_difference_ratio", 5)],
            _ratio_limits(theory, 3, 5),
        ),
    ]


def _ratio_limits(theory: CollapseValues, of_mir: int, of_hdr: int) -> list[Limit]:
    ratio = theory.mutual_information_ratio
    return [
        Limit(f"MIR {ratio:.3f}", ratio, of_mir),
        Limit("HDR 0", theory.entropy_difference_ratio, of_hdr),
    ]


def _temperature(entries: Entries, theory: CollapseValues) -> list[Panel]:
    def panel(title: str, y_label: str, key: str, number: int, *limits: Limit) -> Panel:
        curve = Curve(title, _points(entries, "temperature", key), number)
        span = ACCURACY_SPAN if key == "accuracy" else 0.0
        return Panel(title, "temperature T", y_label, [curve], limits, span=span)

    entropies = [
        Curve(label, _points(entries, "temperature", key), number)
        for label, key, number in (
            ("H of features", "feature_entropy", 0),
            ("H of classifier rows", "classifier_entropy", 3),
        )
    ]
    limit = Limit(f"ln(C−1) {theory.entropy:.3f}", theory.entropy, 0)
    return [
        panel("accuracy", "accuracy (%)", "accuracy", 6),
        Panel("matrix entropy", "temperature T", "nats", entropies, [limit]),
        panel("silhouette", "silhouette", "silhouette", 1, Limit("1", 1.0, 1)),
        panel("Davies-Bouldin", "Davies-Bouldin index", "davies_bouldin", 2, Limit("0", 0.0, 2)),
    ]


def _pictures(folder: Path, record: Record) -> list[Scatter]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = folder / POINTS
    try:
        tensors: dict[str, Any] = load_file(path)
        labels = tensors.pop("labels").tolist()
    except (SafetensorError, OSError, KeyError) as error:
        raise UserError(
            f"Expected points at {path}, but they can't be read ({error}); run the experiment again."
        ) from None
    names = record.training["class_names"]
    return [
        Scatter(f"t-SNE of the features, T = {temperature}", tensors[temperature].tolist(), labels, names)
        for temperature in sorted(tensors, key=float)
    ]


def _connectivity(entries: Entries, theory: CollapseValues) -> list[Panel]:
    rates = list(dict.fromkeys(entry["rate"] for entry in entries))

    def curves(key: str) -> list[Curve]:
        made = []
        for number, rate in enumerate(rates):
            of_rate = [entry for entry in entries if entry["rate"] == rate]
            line = [entry for entry in of_rate if not entry["own_statistics"]]
            ends = [entry for entry in of_rate if entry["own_statistics"]]
            made.append(Curve(f"learning rate {rate:g}", _points(line, "omega", key), number))
            label = f"its ends with the statistics of training ({rate:g})"
            made.append(Curve(label, _points(ends, "omega", key), number, ""))
        return made

    x = "share ω of the second network"
    mir, hdr = _ratio_limits(theory, 6, 6)
    return [
        Panel("accuracy", x, "accuracy (%)", curves("accuracy"), span=ACCURACY_SPAN),
        Panel("MIR", x, "MIR", curves("mutual_information_ratio"), [mir]),
        Panel("HDR", x, "HDR", curves("entropy_difference_ratio"), [hdr]),
    ]


def _grokking(entries: Entries, theory: CollapseValues) -> list[Panel]:
    def pair(what: str, key: str, number: int) -> list[Curve]:
        return [
            Curve(f"{what}, {part}", _points(entries, "epoch", f"{part}_{key}"), number, style)
            for part, style in (("train", "--"), ("test", "-"))
        ]

    x = "epoch"
    ratios = [*pair("MIR", "mutual_information_ratio", 3), *pair("HDR", "entropy_difference_ratio", 5)]
    entropies = [
        *pair("H of features", "feature_entropy", 0),
        *pair("H of classifier rows", "classifier_entropy", 1),
    ]
    limit = Limit(f"ln(p−1) {theory.entropy:.3f}", theory.entropy, 0)
    return [
        Panel("accuracy", x, "accuracy (%)", pair("accuracy", "accuracy", 6), log=True),
        Panel("ratios", x, "ratio", ratios, _ratio_limits(theory, 3, 5), log=True),
        Panel("matrix entropy", x, "nats", entropies, [limit], log=True),
    ]


PANELS: dict[str, Callable[[Entries, CollapseValues], list[Panel]]] = {
    "dynamics": _dynamics,
    "temperature": _temperature,
    "connectivity": _connectivity,
    "grokking": _grokking,
}
