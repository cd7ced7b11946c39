"""Softmax temperature against entropy and clustering of the features (the paper's Fig. 2b to e)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from cma_tune.companion.lab.trainings import leave_experiment, part_of_experiment
from cma_tune.companion.loop import Trained, outputs_of
from cma_tune.companion.setup import CompanionSetup
from cma_tune.companion_options import LabConfig
from cma_tune.companion_run import CompanionRun
from cma_tune.files import write_atomically
from cma_tune.records import Record

POINTS = "points.safetensors"

MOST_POINTS = 2000
"""In a picture; more would be a blot."""


def train_temperatures(setup: CompanionSetup, run: CompanionRun) -> Record:
    """Train once for every T of CE(z/T, y), from one initialisation, and leave curves, points and record."""
    config, started = run.config, time.perf_counter()
    assert isinstance(config, LabConfig)
    curves, points = [], {}
    for temperature in config.temperatures:
        name = f"T-{temperature:g}"
        trained, history = part_of_experiment(setup, run, name, temperature=temperature)
        curves.append({"temperature": temperature, **history[-1]})
        if temperature in (min(config.temperatures), max(config.temperatures)):
            points[f"{temperature:g}"] = picture_of(setup, trained, config)
    if setup.accelerator.is_main_process:
        save_points(run.folder(), points, picked(setup.images.test.labels))
    figures = {
        f"{key}_T{entry['temperature']:g}": entry[key]
        for entry in curves
        for key in ("accuracy", "feature_entropy", "silhouette", "davies_bouldin")
        if key in entry
    }
    training = {"class_names": list(setup.images.class_names)}
    return leave_experiment(setup, run, trained.network, figures, curves, training, started)


def picked(rows: Tensor) -> Tensor:
    """At most `MOST_POINTS` rows, evenly spaced."""
    if len(rows) <= MOST_POINTS:
        return rows
    return rows[torch.arange(MOST_POINTS) * len(rows) // MOST_POINTS]


def picture_of(setup: CompanionSetup, trained: Trained, config: LabConfig) -> Tensor:
    """The test features in the plane by t-SNE, ``[N, 2]``, float32."""
    from sklearn.manifold import TSNE

    output = outputs_of(
        trained.evaluated(),
        picked(setup.images.test.images),
        setup.prepare(config),
        setup.accelerator,
        config.eval_batch_size,
    )
    perplexity = min(30.0, (len(output.features) - 1) / 3)
    embedding = TSNE(perplexity=perplexity, init="pca", random_state=config.seeds[0])
    return torch.from_numpy(embedding.fit_transform(output.features.numpy())).float()


def save_points(folder: Path, points: Mapping[str, Tensor], labels: Tensor) -> None:
    """Write ``points.safetensors``: the points ``[N, 2]`` by temperature, and their ``labels``, ``[N]``."""
    tensors = {**{name: value.contiguous() for name, value in points.items()}, "labels": labels.contiguous()}
    write_atomically(folder / POINTS, lambda temporary: save_file(tensors, str(temporary)))
