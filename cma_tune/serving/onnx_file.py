"""ONNX of the image tower and the classifier: images in, logits out."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cma_tune.errors import UserError
from cma_tune.files import write_json
from cma_tune.learners.base import Learner
from cma_tune.serving.description import FILE, KEY, Description, describe, parse_description

MODEL = "model.onnx"

INPUT, OUTPUT = "images", "logits"

ONE_FILE = 1_500_000_000
"""Bytes of weights from which on they go to a file of their own: an ONNX file ends at 2 GiB."""


class ImagesToLogits(nn.Module):
    """The whole way from images ``[B, 3, H, W]`` to logits ``[B, C]``; text is computed once.

    Args:
        learner: text that is conditioned on the image is refused.

    Raises:
        UserError: see `check_for_onnx`.
    """

    text: Tensor

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        check_for_onnx(type(learner))
        self.learner, self.backbone = learner, learner.backbone
        with torch.no_grad():
            self.register_buffer("text", learner.text_features().detach())

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, C]``."""
        logits: Tensor = self.learner(images, self.text).logits
        return logits


def check_for_onnx(kind: type[Learner]) -> None:
    """Raise a `UserError` if a method's text has to be computed for every image."""
    if kind.conditioned_on_image:
        raise UserError(
            f"Expected a method whose text is the same for every image, got '{kind.name}', whose text is "
            "conditioned on the image; use the prompt itself with cma-tune predict."
        )


def need(package: str) -> None:
    """Raise a `UserError` if a package of the extra "export" is not installed."""
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise UserError(
            f"Expected the package {package} for ONNX files, but it is not installed; "
            "run: pip install 'cma_tune[export]'."
        )


@torch.no_grad()
def write_onnx(learner: Learner, folder: Path, learned: Mapping[str, Any]) -> Description:
    """Write ``model.onnx`` (``images`` [batch, 3, H, W] → ``logits`` [batch, C]) and ``classifier.json``.

    Images are preprocessed already; how is in the JSON, which is also in the file's metadata as "cma_tune".

    Raises:
        UserError: a package is missing, the method's text is conditioned on the image, the backbone can't be
            exported, or the file does not give the logits of torch.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        need(package)
    description = describe(learner, "onnx", learned)
    module = ImagesToLogits(learner).eval()
    images = torch.randn(3, 3, *description.preprocessing.size, generator=torch.Generator().manual_seed(0))
    try:
        with _quietly():
            program = torch.onnx.export(
                module,
                (images,),
                dynamo=True,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
                verbose=False,
            )
    except Exception as error:  # torch.export fails in many ways over what it can't trace
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"Expected to export '{learner.backbone.name}' with '{learner.name}' to ONNX, but torch can't: "
            f"{reason}."
        ) from error
    assert program is not None
    program.model.metadata_props[KEY] = description.text()
    size = sum(value.numel() * value.element_size() for value in learner.backbone.model.state_dict().values())
    program.save(folder / MODEL, external_data=size > ONE_FILE)
    write_json(folder / FILE, description.content())
    _check(module, folder / MODEL, images)
    return description


@contextmanager
def _quietly() -> Iterator[None]:
    """The exporter reports on its own versions and passes, through warnings and loggers."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [one.level for one in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for one in loggers:
            one.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for one, level in zip(loggers, levels, strict=True):
                one.setLevel(level)


def _check(module: ImagesToLogits, path: Path, images: Tensor) -> None:
    """Nothing leaves that does not give torch's logits, also for another number of images than traced."""
    session, _ = open_onnx(path)
    for some in (images[:1], images):
        expected = module(some)
        try:
            got = run_onnx(session, some)
        except Exception as error:  # onnxruntime's have no base of their own
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"Expected ONNX of '{module.learner.name}' on '{module.backbone.name}' for any number "
                f"of images, but with {len(some)} it fails: {reason}; use another method, backbone or form."
            ) from error
        if not torch.allclose(got, expected, rtol=1e-3, atol=1e-3):
            raise UserError(
                f"Expected the logits of torch from the ONNX file of '{module.backbone.name}', got others "
                f"(by {float((got - expected).abs().max()):.2g}); use another backbone or form."
            )


def open_onnx(path: Path) -> tuple[Any, Description]:
    """A session of onnxruntime on the CPU, and the description in the file.

    Raises:
        UserError: onnxruntime is missing, or the file is damaged or not one of ours.
    """
    need("onnxruntime")
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no base of their own
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"Expected an ONNX file at {path}, but it can't be opened: {reason}.") from None
    metadata: Mapping[str, str] = session.get_modelmeta().custom_metadata_map
    return session, parse_description(metadata.get(KEY, ""), path)


def run_onnx(session: Any, images: Tensor) -> Tensor:
    """Logits ``[B, C]`` for images ``[B, 3, H, W]``."""
    return torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])
