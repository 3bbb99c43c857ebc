"""Resources that a job asks of the cluster, checked."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field

from shards.errors import InputError

ENVIRONMENT_NAME = re.compile(r"[A-Za-z_]\w*")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Characters that end a line somewhere, or that a terminal obeys."""


def require_one_line(name: str, text: str) -> None:
    """Check that a text may stand in a batch script, where a line break would begin a command."""
    if CONTROL.search(text):
        raise InputError(f"{name}: got {text!r}; one line without control characters is needed")


def split_words(text: str) -> list[str]:
    """Split options into words as a shell would, of which nothing else of them is left to a shell."""
    try:
        return shlex.split(text)
    except ValueError as error:  # a quotation mark that is not closed
        raise InputError(f"{text!r}: {error}") from None


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Resources of one array task. What is empty or 0 is not asked for: the cluster's default holds."""

    partition: str = ""
    """Queue."""
    account: str = ""
    """Who pays."""
    qos: str = ""
    """Quality of service."""
    constraint: str = ""
    """Node features, such as `a100&ib`."""
    nodes: int = 1
    """Machines per task."""
    gpus_per_node: int = 0
    """GPUs of each machine; 0: none, and processes of one task talk over gloo instead of NCCL."""
    gpu_type: str = ""
    """Type of GPU where the cluster tells them apart, such as a100."""
    ranks_per_node: int = 0
    """Training processes per machine; 0: one per GPU, or one where there is none."""
    cpus_per_rank: int = 1
    """Processors of each process: its loader workers and itself."""
    mem_gb_per_node: int = 0
    """Memory of each machine."""
    time_limit_min: int = 0
    """Minutes after which Slurm ends the task."""
    stop_before_end_s: int = 180
    """Seconds before the limit at which a fine-tuning is asked to save and leave; it is then queued again.
    Slurm looks every 30 s, so leave time for that and for one step and one checkpoint."""
    throttle: int = 0
    """Number of tasks of the array that may run at once; 0: as many as fit."""
    exclusive: bool = False
    """Share no machine with other jobs."""
    modules: tuple[str, ...] = ()
    """`module load` each of them."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables for the processes, such as NCCL_SOCKET_IFNAME: ib0."""
    setup: tuple[str, ...] = ()
    """Shell lines before the work, as they are."""
    container: str = ""
    """Words before each command, such as `apptainer exec --nv suite.sif`."""
    python: str = ""
    """Interpreter of the commands, inside the container if there is one; empty: the one that submits."""
    sbatch_options: tuple[str, ...] = ()
    """Further options of sbatch, as they are, such as --reservation=course."""
    srun_options: tuple[str, ...] = ()
    """Further options of srun, such as --container-image=suite.sqsh; no shell reads them."""

    def __post_init__(self) -> None:
        words = {name: value for name, value in vars(self).items() if isinstance(value, str)}
        several = {name: getattr(self, name) for name in ("modules", "sbatch_options", "srun_options")}
        named = [(name, word) for name, values in several.items() for word in values]
        for name, value in [*words.items(), *self.environment.items(), *named]:
            require_one_line(name, value)
        for name, value in vars(self).items():
            least = 1 if name in ("nodes", "cpus_per_rank") else 0
            if isinstance(value, int) and name != "stop_before_end_s" and value < least:
                raise InputError(f"{name} must be {'at least 1' if least else '0 or more'}, got {value}")
        if not 0 <= self.stop_before_end_s <= 65535:
            raise InputError(f"stop_before_end_s must be in 0..65535, got {self.stop_before_end_s}")
        if self.time_limit_min and self.stop_before_end_s >= 60 * self.time_limit_min:
            effect = f"which leaves nothing of time_limit_min {self.time_limit_min}"
            raise InputError(f"stop_before_end_s is {self.stop_before_end_s}, {effect}")
        if self.gpu_type and not self.gpus_per_node:
            raise InputError(f"gpu_type is {self.gpu_type!r}, but gpus_per_node is 0")
        for name in self.environment:
            if not ENVIRONMENT_NAME.fullmatch(name):
                raise InputError(f"environment: {name!r} is no name of a variable")
        for name in ("sbatch_options", "srun_options"):
            for option in getattr(self, name):
                if not option.startswith("-"):
                    raise InputError(f"{name}: {option!r} does not start with - (one line each)")
                split_words(option)
        split_words(self.container)

    @property
    def ranks_here(self) -> int:
        """Processes on each machine."""
        return self.ranks_per_node or self.gpus_per_node or 1

    @property
    def num_ranks(self) -> int:
        """Processes of one task, over all machines."""
        return self.nodes * self.ranks_here

    def options(self) -> list[str]:
        """Return the options of sbatch that ask for this, one line each, quoted as a shell needs it."""
        gpus = f"{self.gpu_type}:{self.gpus_per_node}" if self.gpu_type else str(self.gpus_per_node)
        wanted = [
            ("partition", self.partition),
            ("account", self.account),
            ("qos", self.qos),
            ("constraint", self.constraint),
            ("nodes", str(self.nodes)),
            ("ntasks-per-node", str(self.ranks_here)),
            ("gpus-per-node", gpus if self.gpus_per_node else ""),
            ("cpus-per-task", str(self.cpus_per_rank)),
            ("mem", f"{self.mem_gb_per_node}G" if self.mem_gb_per_node else ""),
            ("time", str(self.time_limit_min) if self.time_limit_min else ""),
        ]
        lines = [f"--{name}={shlex.quote(value)}" for name, value in wanted if value]
        return [*lines, *(["--exclusive"] if self.exclusive else []), *self.sbatch_options]
