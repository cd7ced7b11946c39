"""What the speed benchmarks share: options, tables, and JSON files that hold the machine too."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

import open_clip
import torch

RESULTS = "benchmarks/results/speed"
PRECISIONS = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
TINY = "tiny"
SIDES = ("plain", "packed")


def machine_options(description: str) -> argparse.ArgumentParser:
    """Options that all benchmarks take."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")
    parser.add_argument("--output", type=folder, help=f"folder for the figures as JSON, such as {RESULTS}")
    return parser


def timing_options(description: str, repeats: int = 3) -> argparse.ArgumentParser:
    """Those of benchmarks that repeat short steps, too."""
    parser = machine_options(description)
    parser.add_argument("--repeats", type=int, default=repeats, help="of each side; the fastest counts")
    parser.add_argument("--least", type=float, default=0.5, help="seconds that a measurement takes")
    return parser


def precision_option(parser: argparse.ArgumentParser) -> None:
    """For benchmarks that measure under autocast too."""
    parser.add_argument("--precision", choices=list(PRECISIONS), default="float32")


def step_options(
    description: str, sides: Sequence[str] = SIDES, model: str = "ViT-B-16"
) -> argparse.ArgumentParser:
    """Those of benchmarks of a model's step, too."""
    parser = timing_options(description)
    precision_option(parser)
    parser.add_argument("--model", default=model, help=f"an open_clip model; {TINY} to try a script out")
    parser.add_argument(
        "--memory-of",
        choices=sides,
        help="print one side's peak memory alone, in the first setting",
    )
    return parser


def numbers(text: str) -> list[int]:
    """Whole numbers with commas between them.

    Raises:
        argparse.ArgumentTypeError: they are none.
    """
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected whole numbers with commas between them, got {text}"
        ) from None


def folder(text: str) -> Path:
    """A folder, or a place where one can be made.

    Raises:
        argparse.ArgumentTypeError: a file is there.
    """
    if Path(text).exists() and not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"expected a folder, got the file {text}")
    return Path(text)


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """What was typed; the threads are set.

    Raises:
        SystemExit: a value can't be had here.
    """
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("expected --device cpu on a machine without a GPU, got cuda")
    for name in getattr(options, "model", TINY).split(","):
        if name != TINY and name not in open_clip.list_models():
            parser.error(f"expected a model of open_clip for --model, got {name}")
    torch.set_num_threads(options.threads)
    return options


def machine(device: str, threads: int) -> dict[str, object]:
    """What was measured on."""
    name = torch.cuda.get_device_name() if device == "cuda" else _cpu()
    return {
        "device": name,
        "threads": threads,
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "open_clip": open_clip.__version__,
    }


def revision() -> str | None:
    """The commit of the code that is measured, with "+" where files differ from it; None outside a clone."""
    describe = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--exclude=*", "--dirty=+"]
    try:
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu() -> str:
    try:
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found.group(1) if found else platform.processor()


def table(rows: Sequence[dict[str, object]]) -> str:
    """Rows as a Markdown table."""
    heads = list(rows[0])
    lines = [f"| {' | '.join(heads)} |", f"| {' | '.join('--:' for _ in heads)} |"]
    for row in rows:
        lines.append(f"| {' | '.join(_cell(row[head]) for head in heads)} |")
    return "\n".join(lines)


def _cell(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else "–" if value is None else str(value)


def suffix(device: str, precision: str) -> str:
    """What tells the files of a device and precision from those of the CPU in float32."""
    return "" if (device, precision) == ("cpu", "float32") else f"_{device}_{precision}"


def leave(name: str, options: argparse.Namespace, rows: Sequence[dict[str, object]]) -> None:
    """Print the table and write it with the machine to ``NAME.json`` in the folder of --output, if given."""
    precision = getattr(options, "precision", "float32")
    write(
        f"{name}{suffix(options.device, precision)}.json",
        options.output,
        {
            "machine": machine(options.device, options.threads),
            "repeats": getattr(options, "repeats", 1),
            "precision": precision,
        },
        rows,
    )


def write(
    name: str, folder: Path | None, about: dict[str, object], rows: Sequence[dict[str, object]]
) -> None:
    """Print a table; write it to a file of `folder`, if given, with `about`, commit and date."""
    print(table(rows))
    if folder is None:
        return
    when = datetime.now(timezone.utc).date().isoformat()
    content = {**about, "revision": revision(), "date": when, "rows": list(rows)}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
