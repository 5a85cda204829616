"""The flags that say where a study runs its jobs."""

import functools
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..._errors import UsageError
from ..._limits import option
from .local import Local
from .slurm import Settings, Slurm
from .task import Executor

LOCAL, SLURM = "local", "slurm"
# The flags that SLURM alone reads.
OF_SLURM = ("cluster_file", "partition", "time_minutes", "gpus_per_job", "cpus_per_job", "memory_gb")


@dataclass(frozen=True)
class Where:
    """Where a study runs its jobs; the entry point makes one flag per field."""

    executor: str = option(
        LOCAL,
        "Where the runs of a study are made: 'local', on this machine, or 'slurm', as jobs of a cluster, which need "
        "the extra 'cluster'.",
        among=(LOCAL, SLURM),
    )
    parallel: int | None = option(
        None,
        "Runs side by side: on this machine, each with its own share of the GPUs, or of the CPU cores; of SLURM, the "
        "jobs that may wait or run at once. Default: 1 here, and 64 on a cluster.",
        least=1,
        most=10_000,
    )
    partition: str | None = option(None, "Partition of SLURM for the jobs. Default: the cluster's.")
    time_minutes: int | None = option(
        None, "Minutes that a job of SLURM may take; one that takes longer goes on as another. Default: 60.", least=1
    )
    gpus_per_job: int | None = option(None, "GPUs of a job of SLURM. Default: none.", least=0)
    cpus_per_job: int | None = option(None, "CPU cores of a job of SLURM. Default: the cluster's.", least=1)
    memory_gb: int | None = option(None, "Memory of a job of SLURM, in GB. Default: the cluster's.", least=1)
    cluster_file: str | None = option(
        None,
        "TOML file of other parameters of submitit, such as slurm_account; flags take precedence.",
    )

    def __post_init__(self):
        """Checks what the limits of single options do not say."""
        given = [name for name in OF_SLURM if getattr(self, name) is not None]
        if self.executor != SLURM and given:
            raise UsageError(f"--{given[0]} is for --executor={SLURM}; give that too, or leave it out")

    def make(self) -> Callable[[Path], Executor]:
        """Returns a function that makes the executor, given the folder of the study.

        Raises:
          UsageError: the file of the cluster cannot be read.
        """
        if self.executor == LOCAL:
            return functools.partial(Local, parallel=self.parallel or 1)
        parameters: dict[str, Any] = {} if self.cluster_file is None else _read(Path(self.cluster_file))
        flags = {
            "slurm_partition": self.partition,
            "slurm_time": self.time_minutes,
            "slurm_gpus_per_node": self.gpus_per_job,
            "slurm_cpus_per_task": self.cpus_per_job,
            "slurm_mem": None if self.memory_gb is None else f"{self.memory_gb}GB",
        }
        parameters |= {name: value for name, value in flags.items() if value is not None}
        settings = Settings(parameters) if self.parallel is None else Settings(parameters, self.parallel)
        return functools.partial(Slurm, settings=settings)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise UsageError(f"--cluster_file={path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UsageError(f"--cluster_file={path} is not TOML ({error}), such as slurm_account = 'mine'") from error
