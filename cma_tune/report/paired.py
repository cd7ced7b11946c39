"""Paired tests between two methods: over seeds, over datasets, and over the images of each run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from cma_tune.errors import UserError, nearest
from cma_tune.metrics.significance import image_test, paired_t_test, sign_test
from cma_tune.predictions import load_predictions
from cma_tune.records import Record
from cma_tune.report.cells import Table
from cma_tune.report.groups import shots_text
from cma_tune.report.methods import Method, Place, own_recipe_notes, places, transfer_places
from cma_tune.report.sheets import Content, Entry, Sheet, Span
from cma_tune.report.tables import ON_TARGET, TRANSFER

BASE_OF_ALL, NOVEL_OF_ALL = "base of all", "novel of all"
METRICS: dict[str, dict[str, tuple[str, str | None]]] = {
    "few-shot": {"accuracy": ("accuracy", "test")},
    "base-to-novel": {
        "base_accuracy": ("base", "base"),
        "novel_accuracy": ("novel", "novel"),
        "harmonic_mean": ("H", None),
        "base_accuracy_among_all": ("base among all", BASE_OF_ALL),
        "novel_accuracy_among_all": ("novel among all", NOVEL_OF_ALL),
        "harmonic_mean_among_all": ("H among all", None),
    },
    **{transfer: {"accuracy": ("accuracy", "target")} for transfer in TRANSFER},
}
"""Figure: how it is called, and the list of images it is made from."""
SHORT = {"cma": "coop+cma", "zero-shot": "zero_shot"}
NOTES = (
    "Paired t and exact sign test over the same seeds, and over the datasets' means. McNemar's exact test "
    "over the test images of one run; its interval is a paired bootstrap over these images (10,000 "
    "samples), and tells nothing of other seeds.",
    "p is two-sided and not corrected for the number of tests. With n pairs the sign test can't go below "
    "2^(1−n): 0.25 for three seeds. Where all differences are the same, or 0, t has no p.",
)
MEAN_OF_H = (
    "Tests pair the seeds' own H, and over datasets its means; H of the other tables is the harmonic mean of "
    "mean base and mean novel accuracy."
)


def paired_sheets(tables: Sequence[Table], pair: Sequence[str], folders: Mapping[str, Path]) -> list[Sheet]:
    """Tests of the second method against the first, wherever both ran.

    Args:
        tables: of `build_tables`.
        pair: two methods by key (coop, coop+cma-0.3, coop+cma-release, coop+cma-selected, zero-shot) or name;
            "cma" is the one with the penalty, or with the release's λ.
        folders: of the records behind the tables, by the digest of the run.

    Raises:
        UserError: not two methods, one that is not there or may be several, two that share no run, or
            predictions that are not those of the record.
    """
    if len(pair) != 2:
        raise UserError(f"Expected two methods for --compare, such as coop,cma, got {len(pair)}.")
    sheets = []
    all_places = [*places(tables), *transfer_places(tables)]
    found: dict[str, list[Method | None]] = {name: [] for name in pair}
    for name, methods in found.items():
        unclear = []
        for place in all_places:
            try:
                methods.append(find_method(place, name))
            except UserError as error:  # in another protocol it may be clear
                methods.append(None)
                unclear.append(error)
        if not any(methods):
            if unclear:
                raise unclear[0]
            known = list(dict.fromkeys(method.key for place in all_places for method in place.methods))
            if not known:
                raise UserError("Expected runs of CLIP's methods for --compare, got none; leave it out.")
            raise UserError(
                f"Expected a method of these records for --compare, out of {', '.join(known)}, "
                f"got '{name}'{nearest(name, known)}."
            )
    for place, first, second in zip(all_places, found[pair[0]], found[pair[1]], strict=True):
        if first and second and (sheet := _sheet(place, first, second, folders)):
            sheets.append(sheet)
    if not sheets:
        raise UserError(
            f"Expected runs of '{pair[0]}' and '{pair[1]}' on the same dataset and backbone at the same "
            "shots, got none; compare other methods."
        )
    return sheets


def find_method(place: Place, text: str) -> Method | None:
    """The method that `text` means, None where there is none.

    Raises:
        UserError: it may mean several.
    """
    wanted = SHORT.get(text.lower(), text.lower())
    exact = [m for m in place.methods if wanted in (m.key, m.name.lower())]
    chosen = exact or [m for m in place.methods if m.key.startswith(f"{wanted}-") and wanted.endswith("+cma")]
    chosen = [m for m in chosen if m.release] or chosen
    if len(chosen) > 1:
        names = ", ".join(f"'{m.name if exact else m.key}'" for m in chosen)
        raise UserError(f"Expected one method for --compare, got '{text}', which may be {names}; name one.")
    return chosen[0] if chosen else None


def _sheet(place: Place, first: Method, second: Method, folders: Mapping[str, Path]) -> Sheet | None:
    rows: list[tuple[Content, ...]] = []
    rules: set[int] = set()
    for metric, (called, part) in METRICS[place.protocol].items():
        for shots in place.shots or [0]:
            at = f"{called}, {shots_text(shots)}"
            block: list[tuple[Content, ...]] = []
            means: list[tuple[float, float]] = []
            for dataset in place.datasets:
                before, after = first.cell(dataset, shots, metric), second.cell(dataset, shots, metric)
                if before is None or after is None:
                    continue
                keys = [_in_record(place, method, dataset, metric) for method in (first, second)]
                pairs = _by_seed(first, second, dataset, shots)
                pairs = [
                    pair for pair in pairs if all(k in r.figures for k, r in zip(keys, pair, strict=True))
                ]
                if not pairs:
                    continue
                values = [(one.figures[keys[0]], other.figures[keys[1]]) for one, other in pairs]
                average = tuple(sum(side) / len(side) for side in zip(*values, strict=True))
                means.append((average[0], average[1]))
                block += _over(values, "seeds", dataset, at)
                # Of zero-shot beside a transfer no predictions are kept.
                stored = dataset if place.source else part or ""
                for one, other in pairs if stored and keys[0] == keys[1] else []:
                    if row := _images(one, other, keys[0], stored, folders):
                        block.append((dataset, at, *row))
            if len(means) > 1:
                block += _over(means, "datasets", f"all {len(means)}", at)
            if block and rows:
                rules.add(len(rows))
            rows += block
    if not rows:
        return None
    headers = ("dataset", "figure", "test", "n", first.name, second.name, "difference", "95 % interval", "p")
    learned = f" learned on {place.source}" if place.source else ""
    title = (
        f"{place.protocol.capitalize()}, paired tests: {second.name} against {first.name}{learned}, backbone "
    )
    notes = [*NOTES, *(f"{m.name}: λ of the release." for m in (first, second) if m.release and m.weight)]
    notes += own_recipe_notes((first, second))
    if any(str(row[1]).startswith("H") for row in rows):
        notes.append(MEAN_OF_H)
    over = frozenset(number for number, row in enumerate(rows) if str(row[0]).startswith("all "))
    return Sheet(
        title + place.backbone, headers, tuple(rows), tuple(notes), frozenset(rules), 3, averages=over
    )


def _in_record(place: Place, method: Method, dataset: str, metric: str) -> str:
    """What a figure is called in the records behind it."""
    if not place.source:
        return metric
    return f"{'zero_shot_' if method.learner == 'zero_shot' else ''}{ON_TARGET}{dataset}"


def _by_seed(first: Method, second: Method, dataset: str, shots: int) -> list[tuple[Record, Record]]:
    """Runs of both with the same seed; zero-shot, which has none, stands beside every seed."""
    sides = []
    for method in (first, second):
        own = 0 if method.learner == "zero_shot" else shots
        records = [r for r in method.groups[(dataset, own)].records if not own or r.shots == own]
        sides.append({record.seed: record for record in records})
    before, after = sides
    zero = [method.learner == "zero_shot" for method in (first, second)]
    if zero[0] and not zero[1]:
        before = dict.fromkeys(after, next(iter(before.values())))
    elif zero[1] and not zero[0]:
        after = dict.fromkeys(before, next(iter(after.values())))
    return [(before[seed], after[seed]) for seed in sorted(before.keys() & after.keys())]


def _over(
    values: Sequence[tuple[float, float]], what: str, dataset: str, at: str
) -> list[tuple[Content, ...]]:
    first, second = ([pair[side] for pair in values] for side in (0, 1))
    means = Entry(sum(first) / len(first)), Entry(sum(second) / len(second))
    difference = Entry(means[1].value - means[0].value, signed=True)
    test, count = paired_t_test(first, second), str(len(values))
    if test is None:
        return [(dataset, at, f"one {what[:-1]}, no test", count, *means, difference, None, None)]
    # Differences that are the same to rounding, or all 0, have no spread to measure their mean by.
    p = _p(test.p) if abs(test.t) < 1e9 else None
    return [
        (dataset, at, f"paired t over {what}", count, *means, difference, None, p),
        (dataset, at, f"sign over {what}", count, *means, difference, None, _p(sign_test(first, second))),
    ]


def _images(
    first: Record, second: Record, metric: str, part: str, folders: Mapping[str, Path]
) -> tuple[Content, ...] | None:
    """The test over the images of one seed, None where predictions of one of the two were not stored."""
    sides = []
    for record in (first, second):
        folder = folders.get(record.run)
        pairs = _stored(record, folder, part) if folder else None
        if folder is None or pairs is None:
            return None
        accuracy = 100.0 * float((pairs[:, 0] == pairs[:, 1]).double().mean())
        if abs(accuracy - record.figures[metric]) > 1e-6:
            raise UserError(
                f"Expected predictions of the record in {folder} ({record.figures[metric]:.2f} % {part}), "
                f"got others ({accuracy:.2f}); run it again with --resume false, or remove the predictions."
            )
        sides.append(pairs)
    before, after = sides
    if _split(first, part) != _split(second, part) or not before[:, 1].equal(after[:, 1]):
        return None  # other test images
    test = image_test(before[:, 0] == before[:, 1], after[:, 0] == after[:, 1])
    seed = max(first.seed, second.seed)
    figures = (
        Entry(first.figures[metric]),
        Entry(second.figures[metric]),
        Entry(test.difference, signed=True),
    )
    return (f"McNemar, seed {seed}", str(test.images), *figures, Span(test.low, test.high), _p(test.p))


def _split(record: Record, part: str) -> object:
    """Digest of the split that a list of images belongs to, which may be a target's."""
    return record.dataset.get("targets", {}).get(part, record.dataset).get("split")


def _stored(record: Record, folder: Path, part: str) -> Tensor | None:
    """Predicted and true classes of a list of images, or of a half of it; None where they were not stored."""
    stored = load_predictions(folder) or {}
    if part not in (BASE_OF_ALL, NOVEL_OF_ALL):
        return stored.get(part)
    if "all" not in stored:
        return None
    pairs, half = stored["all"], math.ceil(sum(map(len, record.per_class.values())) / 2)
    return pairs[(pairs[:, 1] < half) == (part == BASE_OF_ALL)]


def _p(p: float) -> Entry:
    return Entry(p, digits=4)
