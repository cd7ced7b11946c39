"""Processes that do a grid's runs: on this machine, each on a device, or on a cluster through submitit."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch

from cma_tune.errors import UserError
from cma_tune.files import write_text
from cma_tune.options import GridConfig

REQUEUES = 100
"""How often a job that is out of time goes on in a new one."""

CLUSTER_POLL = {"local": 0.5, "slurm": 10.0}
"""Seconds between two looks at the jobs."""


class Worker(Protocol):
    """A process somewhere that goes over the grid's tasks."""

    poll: float

    def ended(self) -> bool:
        """Whether it has ended, however."""

    def trouble(self) -> str | None:
        """What it ended of, if not by itself."""

    def stop(self) -> None:
        """End it now."""


def start_workers(config: GridConfig, most: int) -> Sequence[Worker]:
    """Start as many as the config says, `most` at most.

    Raises:
        UserError: submitit is not installed, or the cluster is not to be reached from here.
    """
    count = min(max(config.workers, 1), most)
    folder = Path(config.output) / "grid"
    text = json.dumps(asdict(config) | {"workers": count}, indent=2) + "\n"
    # Named by its content: several grids may go on in one folder.
    path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"
    write_text(path, text)
    if config.cluster is not None:
        return _submit(config, config.cluster, path.resolve(), count)
    return [_LocalWorker(path, number, worker_environment(number, count)) for number in range(count)]


def worker_environment(number: int, count: int, gpus: int | None = None) -> dict[str, str]:
    """One device for every worker, in turn, and an equal share of the cores.

    Args:
        number: of the worker, from 0.
        count: of all workers.
        gpus: on this machine; by default they are counted.
    """
    environment = dict(os.environ)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        devices = [str(i) for i in range(torch.cuda.device_count() if gpus is None else gpus)]
    else:
        devices = [device for device in visible.split(",") if device]
    if devices:
        environment["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
    environment.setdefault("OMP_NUM_THREADS", str(max(1, _cores() // count)))
    return environment


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _LocalWorker:
    poll = 0.5

    def __init__(self, path: Path, number: int, environment: Mapping[str, str]) -> None:
        self._number = number
        self._log = path.with_suffix(f".worker{number}.log")
        with open(self._log, "w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "cma_tune.protocols.grid_worker", str(path), str(number)],
                stdin=subprocess.PIPE,  # closes with this process, and ends the worker then
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
            )

    def ended(self) -> bool:
        return self._process.poll() is not None

    def trouble(self) -> str | None:
        code = self._process.returncode
        if not code:
            return None
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"status {code}"
        return f"worker {self._number} ended with {how}; its output is in {self._log}"

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


def _submit(config: GridConfig, cluster: str, path: Path, count: int) -> Sequence[Worker]:
    try:
        import submitit
    except ImportError:
        raise UserError(
            "Expected the package submitit for --cluster, but it is not installed; "
            "pip install 'cma_tune[slurm]'."
        ) from None
    try:
        executor = submitit.AutoExecutor(
            folder=path.with_suffix(".submitit"), cluster=cluster, slurm_max_num_timeout=REQUEUES
        )
    except RuntimeError as error:
        raise UserError(
            f"Expected a machine from which jobs can be submitted with --cluster {cluster}, "
            f"but: {str(error).rstrip('.')}; use --workers on this one."
        ) from None
    executor.update_parameters(
        name="cma-tune",
        timeout_min=config.time,
        tasks_per_node=1,
        gpus_per_node=config.gpus,
        cpus_per_task=config.cpus,
    )
    if config.partition is not None:
        executor.update_parameters(slurm_partition=config.partition)
    jobs = [executor.submit(ClusterJob(), str(path), number) for number in range(count)]
    print(f"submitted {', '.join(job.job_id for job in jobs)}", flush=True)
    return [_ClusterWorker(job, CLUSTER_POLL[cluster]) for job in jobs]


class ClusterJob:
    """What submitit runs. A job that is out of time goes on in a new one."""

    def __call__(self, path: str, number: int) -> None:
        """Do what there is to do."""
        from cma_tune.protocols.grid_worker import work_from

        work_from(Path(path), number)

    def checkpoint(self, path: str, number: int) -> Any:
        """Asked by submitit before time runs out. Runs have their own checkpoints: just start again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, path, number)


class _ClusterWorker:
    def __init__(self, job: Any, poll: float) -> None:
        self._job, self.poll = job, poll

    def ended(self) -> bool:
        return bool(self._job.done())

    def trouble(self) -> str | None:
        # Without a result submitit would wait for one for a while.
        if self._job.paths.result_pickle.exists():
            error = self._job.exception()
            reason = "" if error is None else str(error).strip().splitlines()[-1]
        else:
            reason = "" if self._job.state == "COMPLETED" else f"{self._job.state}, without a result"
        if not reason:
            return None
        return f"job {self._job.job_id} ended ({reason}); its output is in {self._job.paths.stderr}"

    def stop(self) -> None:
        self._job.cancel()
