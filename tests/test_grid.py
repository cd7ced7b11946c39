"""Grids in one process: what is run, skipped, refused, and what one failure does to the rest."""

from __future__ import annotations

import json
import shutil
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import pytest
from grid_runs import OPTIM, grid_config, image_folder
from tiny_runs import backbone, base_to_novel_config, few_shot_config

import cma_tune.protocols.grid
import cma_tune.protocols.grid_progress
import cma_tune.protocols.runs
from cma_tune.build import Setup
from cma_tune.cli import main, parse
from cma_tune.config import LossConfig, entries
from cma_tune.errors import UserError
from cma_tune.options import GridConfig
from cma_tune.protocols.few_shot import few_shot
from cma_tune.protocols.grid import HERE, grid, work
from cma_tune.protocols.grid_bench import only_one_at
from cma_tune.protocols.grid_plan import ELEVEN, FAILURE, failure, left_out, plan, write_failure
from cma_tune.records import find_records, load_record
from cma_tune.run import expand


@pytest.fixture(autouse=True)
def loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny backbone, loaded once for all tests."""
    monkeypatch.setattr("cma_tune.build.load_backbone", lambda *_: backbone())


def figures(folder: Path) -> dict[str, Any]:
    return {str(p.parent.relative_to(folder)): load_record(p).figures for p in folder.rglob("record.json")}


def test_a_grid_gives_what_its_runs_give_one_by_one(
    tmp_path: Path, fits: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    colours = image_folder(tmp_path / "colours")
    grid(grid_config(tmp_path / "grid", ["digits", colours]))
    assert len(fits) == 2 * 2 * 2
    for name in ("digits", colours):
        changes = {"shots": [1], "seeds": [1, 2], "weights": [0.0, 0.3], "optim": OPTIM}
        config = few_shot_config(tmp_path / "alone", dataset=name, **changes)
        few_shot(config, Setup(config, backbone=backbone()))
    assert figures(tmp_path / "grid") == figures(tmp_path / "alone")
    mine = {record.run for record in find_records(tmp_path / "grid")}
    assert mine == {record.run for record in find_records(tmp_path / "alone")}
    out = capsys.readouterr().out
    assert "[8/8]" in out and "left)" in out and not list(tmp_path.rglob(FAILURE))
    # The same again does nothing; a wider one does what is missing.
    fits.clear()
    grid(grid_config(tmp_path / "grid", ["digits", colours], weights=[0.3, 0.0]))
    assert fits == []
    grid(grid_config(tmp_path / "grid", [colours, "digits"], weights=[0.0, 0.3, 0.7], seeds=[2]))
    assert len(fits) == 2 and all("λ=0.7 1-shot seed 2" in made for made in fits)


def test_base_to_novel_with_zero_shot_and_a_choice(tmp_path: Path) -> None:
    changes = {"protocol": "base-to-novel", "zero_shot": True, "select_weight": True}
    names = [image_folder(tmp_path / "colours"), image_folder(tmp_path / "more")]
    grid(grid_config(tmp_path, names, **changes))
    records = list(find_records(tmp_path))
    assert [r.protocol for r in records].count("zero-shot") == 2
    chosen = [r for r in records if r.selection is not None]
    assert len(records) == 2 + 2 * 2 * 2 + 2 * 2 and len(chosen) == 4
    assert all("harmonic_mean" in record.figures for record in records)


def test_a_failing_dataset_is_reported_and_the_others_finish(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    colours = image_folder(tmp_path / "colours")
    broken = image_folder(tmp_path / "broken")
    (tmp_path / "broken/test/red/1.png").write_bytes(b"no image")
    absent = f"folder:{tmp_path / 'absent'}"
    config = grid_config(tmp_path / "runs", [broken, absent, colours])
    with pytest.raises(SystemExit) as ended:
        grid(config)
    assert ended.value.code == 1
    out = capsys.readouterr().out
    summary = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.startswith("folder:")}
    assert summary[colours] == ["4", "4", "0"]
    assert f"{broken}, 4 failed: Expected an image at" in out and "can't be decoded" in out
    assert f"{absent}, 4 failed: Expected" in out
    assert out.count("failed for the same reason") == 2 * 3  # said once for a dataset, and in the summary
    assert len(list(find_records(tmp_path / "runs"))) == 4
    # What failed is tried again, when it may have been mended.
    (tmp_path / "broken/test/red/1.png").write_bytes((tmp_path / "broken/test/red/0.png").read_bytes())
    grid(replace(config, datasets=[broken, colours]))
    assert len(list(find_records(tmp_path / "runs"))) == 8
    assert all("absent" in str(path) for path in tmp_path.rglob(FAILURE))


def test_a_run_that_fails_stops_neither_the_others_of_its_dataset_nor_hides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fit = cma_tune.protocols.runs.fit

    def fails(*arguments: Any) -> Any:
        if "λ=0.3 1-shot seed 2" in arguments[-1]:
            raise RuntimeError("out of\nmemory")
        return fit(*arguments)

    monkeypatch.setattr(cma_tune.protocols.runs, "fit", fails)
    with pytest.raises(SystemExit):
        grid(grid_config(tmp_path, ["digits"], select_weight=True))
    out = capsys.readouterr().out
    assert "digits, 1 failed: RuntimeError: out of memory" in out
    assert "a λ to choose among failed (RuntimeError: out of memory)" in out
    assert len(list(find_records(tmp_path))) == 3 + 1  # three runs, and the choice for seed 1


def test_a_run_that_another_process_is_at_is_left_to_it(tmp_path: Path, fits: list[str]) -> None:
    config = grid_config(tmp_path, ["digits"], weights=[0.0])
    tasks = plan(config)
    held = only_one_at(config, tasks[0].run.digest())
    with held as mine:
        assert mine
        work(config, tasks, number=0)  # a worker leaves it, and ends
    assert len(fits) == 1 and not (tasks[0].run.folder() / "record.json").exists()
    write_failure(tasks[0].run, "killed", worker=1, final=False)  # as one that died leaves it
    told: dict[Any, Any] = {}
    work(config, tasks, told.__setitem__, number=0)
    assert told[tasks[0]] == "killed" and len(fits) == 1  # no worker goes the way of the one that died
    assert failure(tasks[0].run, final_only=True) == "killed"
    grid(config)  # but the command tries again
    assert len(fits) == 2 and failure(tasks[0].run) is None


def test_the_command_waits_for_what_others_are_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fits: list[str]
) -> None:
    config = grid_config(tmp_path, ["digits"], weights=[0.0], seeds=[1])
    tasks = plan(config)
    other = only_one_at(config, tasks[0].run.digest())
    other.__enter__()
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        other.__exit__(None, None, None)

    monkeypatch.setattr(cma_tune.protocols.grid.time, "sleep", sleep)
    work(config, tasks, number=HERE)
    assert len(waits) == 1 and len(fits) == 1


def test_all_is_the_literatures_eleven_with_the_releases_weights(tmp_path: Path) -> None:
    config = grid_config(tmp_path, ["all"], weights=["recipe", 0.0], shots=[1, 16], seeds=[1, 2, 3])
    tasks = plan(config)
    assert len(ELEVEN) == 11 and len(tasks) == 11 * 2 * 2 * 3
    weights = {
        (t.dataset, t.run.config.shots[0], t.run.config.weights[0])  # type: ignore[union-attr]
        for t in tasks
    }
    assert {("ucf101", 1, 0.8), ("ucf101", 16, 0.6), ("dtd", 1, 0.4), ("imagenet", 16, 0.1)} < weights


def test_recipe_needs_no_word_on_the_form_of_the_loss(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["grid", "few-shot", "--datasets=all", "--shots=1,2,4,8,16", "--seeds=1,2,3"]
    command += ["--weights", "recipe,0"]
    tasks = plan(parse(command[0], [*command[1:], f"--output={tmp_path}"]))
    assert len(tasks) == 11 * 5 * 3 * 2
    assert {astuple(t.run.config.loss) for t in tasks} == {("mean", True)}  # type: ignore[union-attr]
    with pytest.raises(SystemExit, match="2"):
        main([*command, "--loss.reduction=sum"])
    assert "got --loss.reduction sum; leave it out" in capsys.readouterr().err


def test_plain_runs_are_the_same_whatever_the_form_of_the_loss_that_they_do_without(
    tmp_path: Path, fits: list[str]
) -> None:
    config = grid_config(tmp_path, ["digits"], seeds=[1], weights=[0.0], loss=LossConfig())
    grid(config)
    grid(replace(config, weights=[0.0, 0.3], loss=LossConfig("mean", True)))
    assert len(fits) == 2 and "λ=0.3" in fits[1]
    with pytest.raises(UserError, match=r"differs in loss\."):
        grid(replace(config, weights=[0.3], loss=LossConfig("sum", True)))


def test_a_dataset_that_has_changed_is_refused(tmp_path: Path) -> None:
    colours = image_folder(tmp_path / "colours")
    config = grid_config(tmp_path / "runs", [colours], seeds=[1], weights=[0.0])
    grid(config)
    (tmp_path / "colours/test/red/0.png").rename(tmp_path / "colours/test/red/other.png")
    for dry in (True, False):
        with pytest.raises(
            UserError, match=r"Expected the split of .*colours that the record in .* was made"
        ):
            grid(replace(config, seeds=[1, 2], dry_run=dry))
    assert len(list(find_records(tmp_path / "runs"))) == 1
    shutil.rmtree(tmp_path / "colours")
    grid(config)  # what is done stays done


def test_a_dataset_of_ones_own_may_say_what_recipe_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = tmp_path / "catalog.yaml"
    monkeypatch.setenv("CMA_TUNE_CATALOG", str(catalog))
    catalog.write_text("birds: {source: 'folder:./birds', weight: 0.4}\n")
    config = grid_config(tmp_path, ["birds", "dtd"], weights=["recipe"], seeds=[1])
    assert [t.run.config.weights for t in plan(config)] == [[0.4], [0.4]]  # type: ignore[union-attr]
    # dtd has one at 1 shot, and none at 3: what can run does, and the other λ run at both.
    sweep = replace(config, shots=[1, 3], weights=["recipe", 0.0], datasets=["dtd", "birds"])
    found = [(t.dataset, t.run.config.shots, t.run.config.weights) for t in plan(sweep)]  # type: ignore[union-attr]
    of_dtd = [("dtd", [1], [0.4]), ("dtd", [1], [0.0]), ("dtd", [3], [0.0])]
    of_birds = [("birds", [shots], [weight]) for shots in (1, 3) for weight in (0.4, 0.0)]
    assert sorted(found) == sorted([*of_dtd, *of_birds])
    assert list(left_out(sweep)) == [("dtd", 3)]
    catalog.write_text("birds: {source: 'folder:./birds'}\n")
    assert [task.dataset for task in plan(config)] == ["dtd"]
    config = replace(config, datasets=["birds"])
    with pytest.raises(UserError, match=r"'birds' at 1 shot, .* in --weights, or the dataset a 'weight'"):
        plan(config)


def test_a_dataset_without_a_recipe_is_left_out_and_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    image_folder(tmp_path / "birds")
    (tmp_path / "catalog.yaml").write_text("birds: {source: 'folder:./birds', weight: 0.4}\n")
    monkeypatch.setenv("CMA_TUNE_CATALOG", str(tmp_path / "catalog.yaml"))
    config = grid_config(tmp_path / "runs", ["digits", "birds"], weights=["recipe", 0.0], seeds=[1])
    for dry in (True, False):
        with pytest.raises(SystemExit) as ended:
            grid(replace(config, dry_run=dry))
        assert ended.value.code == 1
        out = capsys.readouterr().out
        said = "digits with its recipe can't run: Expected" if dry else "digits, recipe left out: Expected"
        assert out.count(said) == (1 if dry else 2)
    done = sorted((record.config["dataset"], record.weight) for record in find_records(tmp_path / "runs"))
    assert done == [("birds", 0), ("birds", 0.4), ("digits", 0)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"datasets": ["digits", "digitz"]}, "did you mean 'digits'"),
        ({"datasets": ["digits", "digits"]}, "'digits' more than once"),
        ({"datasets": ["folder:a/b", "folder:a_b"]}, "would share"),
        ({"resume": False}, "goes on where it was stopped"),
        ({"workers": -1}, "--workers of at least 0, got -1"),
        ({"partition": "gpu"}, "--cluster slurm with --partition"),
        ({"weights": ["recipe"]}, "λ of the release for 'digits'"),
        ({"shots": [0]}, "--shots of at least 1"),
    ],
)
def test_mistakes_are_found_before_anything_runs(
    tmp_path: Path, fits: list[str], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        grid(grid_config(tmp_path, **{"datasets": ["digits"], **changes}))
    assert fits == []


def test_several_processes_of_accelerate_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="Expected one process for a grid"):
        plan(grid_config(tmp_path, ["digits"]))


def test_a_folder_with_other_runs_is_refused(tmp_path: Path) -> None:
    grid(grid_config(tmp_path, ["digits"], seeds=[1], weights=[0.0]))
    with pytest.raises(UserError, match="one of another run"):
        grid(grid_config(tmp_path, ["digits"], views=2))
    # At λ = 0 the form of the loss, which is another with "recipe", is no difference.
    other = grid_config(
        tmp_path, ["digits"], views=2, seeds=[1], weights=[0.0], loss=LossConfig("mean", True)
    )
    with pytest.raises(UserError, match=r"\(it differs in views\)"):
        grid(other)


def test_the_command_line_takes_the_options_of_the_protocol(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["base-to-novel", "--datasets", f"digits,folder:{tmp_path}", "--shots=1,2", "--optim.lr=0.5"]
    config = parse("grid", arguments)
    assert isinstance(config, GridConfig) and config.protocol == "base-to-novel"
    assert config.datasets == ["digits", f"folder:{tmp_path}"] and config.optim.lr == 0.5
    main(["grid", "few-shot", "--dataset=digits", f"--output={tmp_path}", "--shots=1,2", "--dry-run"])
    assert "2 runs: 0 done, 2 to do" in capsys.readouterr().out
    recipe = Path(__file__).parents[1] / "configs/few_shot/cma_rn50.yaml"
    wide = ["grid", "few-shot", f"--config={recipe}", "--datasets=all", "--weights=recipe,0", "--dry-run"]
    with pytest.raises(SystemExit, match="1"):  # none of the eleven is here
        main([*wide, f"--data-root={tmp_path}"])
    assert f"{11 * 5 * 3 * 2} runs: 0 done" in capsys.readouterr().out


def test_a_record_is_that_of_the_protocols_command(tmp_path: Path) -> None:
    # What the grid adds to a config is no part of a run.
    grid(grid_config(tmp_path, ["digits"], protocol="base-to-novel", seeds=[1], weights=[0.0]))
    record = json.loads(next(tmp_path.rglob("record.json")).read_text())
    assert "protocol" not in record["config"] and "datasets" not in record["config"]
    alone = base_to_novel_config(tmp_path, dataset="digits", shots=[1], optim=OPTIM, mixed_precision="no")
    assert record["config"] == entries(expand("base-to-novel", alone)[0].config)
