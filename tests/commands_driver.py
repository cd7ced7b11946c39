"""Run several commands in the same processes: ``accelerate launch … commands_driver.py COMMANDS.json``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from cma_tune.cli import main

if __name__ == "__main__":
    torch.set_num_threads(1)
    for arguments in json.loads(Path(sys.argv[1]).read_text()):
        main(arguments)
