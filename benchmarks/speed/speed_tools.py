"""What the speed benchmarks share: models at random weights, the plain path, timing in turns, peak memory."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from speed_options import TINY
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils.checkpoint import checkpoint

from cma_tune.clip.backbone import Backbone
from cma_tune.data.class_names import class_names
from cma_tune.learners import CoOp

TINY_MODEL = {
    "embed_dim": 96,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}

REAL_NAMES = {10: "eurosat", 100: "caltech101", 397: "sun397", 1000: "imagenet"}
"""Datasets whose class names stand for so many classes."""


def random_backbone(name: str, device: str = "cpu") -> Backbone:
    """An open_clip model at random weights: speed does not depend on them."""
    if name == TINY:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / f"{TINY}.json").write_text(json.dumps(TINY_MODEL))
            open_clip.add_model_config(folder)
    torch.manual_seed(0)
    model: Any = open_clip.create_model(name, device=device)
    transform = open_clip.transform.image_transform_v2(
        open_clip.transform.PreprocessCfg(**model.visual.preprocess_cfg), is_train=False
    )
    return Backbone(model, open_clip.get_tokenizer(name), transform, name)


def real_names(classes: int) -> list[str]:
    """So many class names of a dataset.

    Raises:
        SystemExit: there is none with this many.
    """
    if classes not in REAL_NAMES:
        raise SystemExit(f"Expected {', '.join(map(str, REAL_NAMES))} classes, got {classes}.")
    return class_names(REAL_NAMES[classes])


class PlainPrompts(nn.Module):
    """CoOp's text side as the reference runs it: every class, all tokens up to the tower's length.

    Independent of the package's own text path, and checked against it where it is made.
    """

    def __init__(self, learner: CoOp) -> None:
        super().__init__()
        self.text: Any = getattr(learner.backbone.model, "text", learner.backbone.model)
        layout = learner.prompts.layout
        self.ids, self.slots = layout.ids, layout.slots
        with torch.no_grad():
            self.embeddings = self.text.token_embedding(self.ids)
            few = slice(0, 10)
            ours = CoOp.text_features(learner)[few]  # whose own may be this very path
            torch.testing.assert_close(self(learner.context, few), ours, rtol=0, atol=1e-4)

    def forward(self, contexts: Tensor, classes: slice = slice(None)) -> Tensor:
        """Contexts ``[M, W]``, or ``[B, M, W]``, to features ``[C, D]`` or ``[B, C, D]`` of unit length."""
        groups = contexts if contexts.dim() == 3 else contexts[None]
        embeddings, slots, ids = self.embeddings[classes], self.slots[classes], self.ids[classes]
        rows = []
        for context in groups:
            places = slots[:, :, None].expand(-1, -1, embeddings.shape[-1])
            x = embeddings.scatter(1, places, context.expand(len(ids), -1, -1))
            x = self.text.transformer(x + self.text.positional_embedding, attn_mask=self.text.attn_mask)
            x = self.text.ln_final(x)[torch.arange(len(ids)), ids.argmax(dim=-1)]
            rows.append(normalize(x @ self.text.text_projection, dim=-1))
        return torch.stack(rows) if contexts.dim() == 3 else rows[0]


def in_chunks(plain: PlainPrompts, context: Tensor, classes: int, size: int) -> Tensor:
    """Features of the plain path, `size` classes at a time.

    With more than one chunk they are recomputed in the backward pass: the loss needs all classes before any
    gradient, and keeping all activations is what chunks are there to avoid.
    """
    if classes <= size:
        return torch.as_tensor(plain(context))
    parts = [slice(start, start + size) for start in range(0, classes, size)]
    return torch.cat([checkpoint(plain, context, part, use_reentrant=False) for part in parts])


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(step: Callable[[], object], device: str = "cpu", least: float = 0.0) -> float:
    """Wall time of one step, or the mean of as many as take `least` seconds."""
    synchronize(device)
    start, count = time.perf_counter(), 0
    while count == 0 or time.perf_counter() - start < least:
        step()
        synchronize(device)
        count += 1
    return (time.perf_counter() - start) / count


def in_turns(sides: dict[str, Callable[[], object]], options: argparse.Namespace) -> dict[str, float]:
    """Fastest of --repeats measurements of each side, taken in turns so that all meet the same noise.

    A side that takes more than half a minute is measured once.
    """
    best = dict.fromkeys(sides, float("inf"))
    for turn in range(options.repeats):
        for name, step in sides.items():
            if turn == 0 or best[name] < 30:
                best[name] = min(best[name], seconds(step, options.device, options.least))
    return best


@dataclass
class Peak:
    """Highest memory above what was there before, in bytes."""

    bytes: int = 0


def peak_memory(step: Callable[[], object], device: str = "cpu", every: float = 0.001) -> int:
    """Bytes above those in use before the step: resident set on the CPU, allocated on a GPU.

    Args:
        step: what to run.
        device: cpu or cuda.
        every: seconds between two looks at the resident set.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    # Else what loading the model freed would hide what the step takes.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    before, peak, done = _resident(), Peak(), threading.Event()

    def watch() -> None:
        while not done.is_set():
            peak.bytes = max(peak.bytes, _resident() - before)
            time.sleep(every)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        step()
    finally:
        done.set()
        watcher.join()
    return peak.bytes


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def print_memory(sides: Mapping[str, Callable[[], object]], options: argparse.Namespace) -> None:
    """What ``--memory-of`` asks for, as `memory` reads it."""
    print(json.dumps({"bytes": peak_memory(sides[options.memory_of], options.device)}))


def in_a_process_of_its_own(*command: str) -> dict[str, Any]:
    """Run this script again with other arguments; its last line of output is JSON.

    Raises:
        SystemExit: it failed, with what it said.
    """
    script = sys.modules["__main__"].__file__
    done = subprocess.run(
        [sys.executable, str(script), *command], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr.strip())
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def memory(options: argparse.Namespace, side: str, *settings: str) -> float:
    """Peak memory (GB) of one side's step above the loaded model, in a process of its own.

    Args:
        options: of `arguments`; those of the machine are handed on.
        side: for ``--memory-of``.
        settings: more of the script's own arguments.
    """
    common = ["--device", options.device, "--threads", str(options.threads), "--precision", options.precision]
    found = in_a_process_of_its_own(*common, *settings, "--memory-of", side)
    return float(found["bytes"]) / 1e9
