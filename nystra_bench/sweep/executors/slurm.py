"""Sessions as jobs of SLURM, by submitit: job arrays, requeued after a preemption or at their time's end, a log each.

submitit's executor for one machine runs the same jobs without SLURM (``executor.cluster=local``).
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nystra_bench.errors import UserError
from nystra_bench.sweep.executors.cluster import Call, ClusterExecutor, Lost, Resources
from nystra_bench.sweep.inspection import child_environment

CLUSTERS = ("slurm", "local")


class SlurmExecutor(ClusterExecutor):
    """Jobs of one kind (alone on their machine, or not) are one array.

    Args:
        cluster: ``slurm``; or ``local``, which runs the jobs on this machine, as many at a time as ``parallel`` says.
        cpus, gpus, memory_gb: what each job asks for; ``memory_gb`` of None leaves it to the cluster.
        parallel: jobs of an array that run at a time.
        images_per_job: see ``ClusterExecutor``.
        hours: after which a job is ended and requeued.
        requeues: how often that is done; a preemption does not count.
        partition, account, qos, constraint: SLURM's, where the cluster wants them.
        inspect_there: whether a job looks at the machine before cells are planned, since timings are of a processor or
            GPU; False takes the machine that the command runs on for one like them.
        more: further options of submitit's ``SlurmExecutor`` as ``{setup: ["module load cuda"]}``.

    Raises:
        ValueError: a value does not fit.
    """

    def __init__(
        self,
        cluster: str = "slurm",
        cpus: int = 4,
        gpus: int = 0,
        memory_gb: float | None = None,
        parallel: int = 16,
        hours: float = 12.0,
        requeues: int = 5,
        partition: str | None = None,
        account: str | None = None,
        qos: str | None = None,
        constraint: str | None = None,
        inspect_there: bool = True,
        more: Mapping[str, Any] | None = None,
        images_per_job: int | None = None,
    ):
        super().__init__(cpus, gpus, memory_gb, parallel, images_per_job)
        if cluster not in CLUSTERS:
            raise ValueError(f"executor.cluster={cluster} is unknown: accepted are {', '.join(CLUSTERS)}")
        if not 1 / 60 <= hours <= 24 * 365:
            raise ValueError(f"executor.hours={hours:g} is out of range: accepted are numbers from 1/60 to 8760")
        if requeues < 0:
            raise ValueError(f"executor.requeues={requeues} is out of range: accepted are whole numbers from 0 on")
        if not isinstance(more, Mapping | None):
            raise ValueError(f"executor.more={more} does not fit: accepted are null and {{NAME: value}}")
        self.cluster, self.hours, self.requeues = cluster, hours, requeues
        self.inspect_there, self.more = inspect_there, dict(more or {})
        self.options = {"partition": partition, "account": account, "qos": qos, "constraint": constraint}

    def available(self) -> str | None:
        if importlib.util.find_spec("submitit") is None:
            return "submitit is not installed: pip install 'nystra-bench[slurm]'"
        if self.cluster == "slurm" and shutil.which("sbatch") is None:
            return (
                "there is no sbatch on this machine: accepted are machines that submit to SLURM, and "
                "executor.cluster=local, which runs the jobs here"
            )
        return None

    @property
    def startable(self) -> int | None:
        return None if self.cluster == "slurm" else self.parallel

    def start(self, function: Callable[[Any], Any], calls: list[tuple[Any, Resources]], folder: Path) -> list[Call]:
        import submitit

        arrays: dict[Resources, list[int]] = defaultdict(list)
        for number, (_, resources) in enumerate(calls):
            arrays[resources].append(number)
        executor = submitit.AutoExecutor(folder / "%j", cluster=self.cluster, slurm_max_num_timeout=self.requeues)
        found: dict[int, Call] = {}
        with _package_on_path():
            for resources, numbers in arrays.items():
                try:
                    executor.update_parameters(**self._parameters(resources))
                except (NameError, ValueError, TypeError) as error:  # what submitit raises of an option that it lacks
                    raise UserError(
                        f"executor.more={self.more} does not fit ({str(error).splitlines()[0]}): accepted are the "
                        "options of submitit's SlurmExecutor"
                    ) from error
                submitted = executor.map_array(Requeued(function), [calls[number][0] for number in numbers])
                found |= dict(zip(numbers, map(Submitted, submitted), strict=True))
        return [found[number] for number in range(len(calls))]

    def _parameters(self, resources: Resources) -> dict[str, Any]:
        minutes = max(1, round(self.hours * 60))
        asked: dict[str, Any] = {"name": "nystra_bench", "timeout_min": minutes, "cpus_per_task": resources.cpus}
        asked |= {"gpus_per_node": resources.gpus} if resources.gpus else {}
        options: dict[str, Any] = {name: value for name, value in self.options.items() if value is not None}
        options |= {"array_parallelism": self.parallel} | ({"exclusive": True} if resources.alone else {})
        options |= {"mem": f"{round(1000 * resources.memory_gb)}M"} if resources.memory_gb else {}
        return asked | {f"slurm_{name}": value for name, value in (options | self.more).items()}


class Requeued:
    """A function that does what is left to do: started again after a preemption or at its time's end, it goes on.

    submitit calls ``checkpoint`` in the job's process when the cluster announces that it will be ended.
    """

    def __init__(self, function: Callable[[Any], Any]):
        self.function = function

    def __call__(self, argument: Any) -> Any:
        return self.function(argument)

    def checkpoint(self, argument: Any) -> Any:
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, argument)


class Submitted:
    """A job of submitit."""

    def __init__(self, job: Any):
        self.job, self.name = job, str(job.job_id)

    def done(self) -> bool:
        return self.job.done()

    def result(self) -> Any:
        from submitit.core.utils import FailedJobError, UncompletedJobError

        try:
            return self.job.result()
        except FailedJobError as error:  # the function raised: the last line but those around the traceback says what
            lines = [line.strip() for line in str(error).partition("You can check")[0].splitlines()]
            said = [line for line in lines if line.strip("-")]
            raise Lost(f"failed ({said[-1] if said else 'without a reason'})") from error
        except UncompletedJobError as error:
            raise Lost(f"ended before it was done (state {self.job.state})") from error

    def cancel(self) -> None:
        self.job.cancel(check=False)


@contextmanager
def _package_on_path() -> Iterator[None]:
    """Let the jobs, which have this process's environment, find this package wherever the command was started."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = child_environment()["PYTHONPATH"]
    try:
        yield
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before
