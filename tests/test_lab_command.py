"""The laboratory's command: records and figures, what a run is, the configs, going on after a kill."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kill_runs import events, results, run_all
from lab_runs import curves_of, lab_config, left_in
from PIL import Image

from cma_tune.cli import main, parse
from cma_tune.companion.lab import temperature
from cma_tune.companion.lab.command import EXPERIMENTS, lab
from cma_tune.companion.steps import Steps
from cma_tune.companion_checks import check_companion
from cma_tune.companion_options import LabConfig
from cma_tune.companion_run import CompanionRun, expand_companion

CONFIGS = Path(__file__).resolve().parents[1] / "configs/companion"

TINY = [
    *("--image_size=8", "--labels=40", "--schedule.steps=6", "--schedule.batch_size=20", "--eval_every=2"),
    *("--temperatures=1,4", "--rates=0.03", "--points=3", "--grokking.modulus=7", "--grokking.epochs=12"),
    *("--grokking.width=8", "--grokking.heads=2", "--grokking.hidden=16", "--grokking.eval_every=4"),
]


def test_dynamics_leaves_curves_record_and_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["lab", "dynamics", f"--output={tmp_path}", *TINY]
    main(command)
    folder = tmp_path / "lab/digits/small-cnn/dynamics/labels40/seed1"
    assert f"figure: {folder / 'figure.png'}" in capsys.readouterr().out
    with Image.open(folder / "figure.png") as image:
        image.load()
        assert image.width > 1000
    ((record, entries),) = left_in(tmp_path).values()
    assert (record["protocol"], record["config"]["experiment"]) == ("lab", "dynamics")
    assert [entry["step"] for entry in entries] == [0, 2, 4, 6]
    for name in ("accuracy", "feature_entropy", "classifier_entropy", "mutual_information_ratio"):
        assert record["figures"][name] == entries[-1][name]
    before = (folder / "record.json").stat().st_mtime_ns
    main(command)
    assert "finished before, skipped" in capsys.readouterr().out
    assert (folder / "record.json").stat().st_mtime_ns == before


def run_of(config: LabConfig) -> CompanionRun:
    (run,) = expand_companion("lab", config)
    return run


def test_an_experiment_is_what_its_own_options_make_it(tmp_path: Path) -> None:
    others: dict[str, dict[str, Any]] = {
        "temperature": {"temperatures": [2.0]},
        "connectivity": {"points": 5, "rates": [0.1]},
        "grokking": {"grokking": replace(lab_config("grokking", tmp_path).grokking, lr=0.5)},
    }
    for experiment in ("dynamics", "temperature", "connectivity", "grokking"):
        config = lab_config(experiment, tmp_path)
        for of, changes in others.items():
            same = run_of(replace(config, **changes)).digest() == run_of(config).digest()
            assert same == (of != experiment), (experiment, of)
        elsewhere = replace(config, output="b", checkpoint_every=2)
        assert run_of(elsewhere).digest() == run_of(config).digest()
        with_mi = run_of(replace(config, max_mi=0.1)).digest()
        assert (with_mi == run_of(config).digest()) == (experiment == "grokking")
    assert {*EXPERIMENTS, "grokking"} == {"dynamics", *others}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("lab_*.yaml")), ids=lambda path: str(path.stem))
def test_configs_are_well_formed_and_small_ones_are_marked(path: Path) -> None:
    config = parse("lab", ["--config", str(path)])
    check_companion(config)
    small = path.stem.endswith(("_digits", "_mod41"))
    text = path.read_text(encoding="utf-8")
    assert ("SMALL" in text) == small and ("full\n# size" in text or "full size" in text)
    assert f"--config configs/companion/{path.name}" in text
    assert config.experiment == path.stem.split("_")[1]
    if config.experiment == "grokking":
        assert (config.grokking.modulus == 113) != small
        assert (config.grokking.width, config.grokking.heads, config.grokking.hidden) == (128, 4, 512)
    else:
        # No file names a network, so that another --dataset takes its own.
        assert (config.dataset, config.network) == ("digits" if small else "cifar10", None)


def test_there_is_a_small_and_a_full_config_for_every_experiment() -> None:
    names = sorted(path.stem.split("_")[1] for path in CONFIGS.glob("lab_*.yaml"))
    assert names == sorted(2 * ["dynamics", "temperature", "connectivity", "grokking"])


def test_a_finished_training_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class StoppedError(Exception):
        pass

    def stop(*arguments: Any) -> None:
        raise StoppedError

    config = lab_config("temperature", tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(temperature, "leave_experiment", stop)
        with pytest.raises(StoppedError):
            lab(config)
    steps: list[int] = []
    step = Steps.step

    def counted(data: Steps, number: int) -> Any:
        steps.append(number)
        return step(data, number)

    monkeypatch.setattr(Steps, "step", counted)
    lab(config)
    assert steps == []
    lab(replace(config, output=str(tmp_path / "again")))
    assert len(steps) == 12
    assert len({json.dumps(curves_of(path.parent)) for path in tmp_path.rglob("record.json")}) == 1


def test_killed_experiments_end_as_those_that_were_never_killed(tmp_path: Path) -> None:
    experiments = ("connectivity", "grokking")
    specs: dict[str, dict[str, Any]] = {}
    for experiment in experiments:
        for name, how in (("whole", {"mode": "never"}), ("killed", {"mode": "writes", "kills": 3})):
            output = tmp_path / name / experiment
            arguments = ["lab", experiment, f"--output={output}", "--checkpoint_every=1", *TINY]
            specs[f"{experiment}-{name}"] = {"arguments": arguments, "loop": "cma_tune.companion.loop", **how}
    run_all(tmp_path, specs)
    for experiment in experiments:
        killed = [event for event in events(tmp_path, f"{experiment}-killed") if "killed" in event]
        assert len(killed) == 3 and {event["killed"] for event in killed} > {"half written"}
        assert any("checkpoint" in event.get("file", "") for event in killed)
        whole = results(tmp_path / "whole" / experiment, "curves.json")
        assert results(tmp_path / "killed" / experiment, "curves.json") == whole
