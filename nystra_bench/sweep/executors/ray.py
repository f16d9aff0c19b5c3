"""Sessions as tasks of Ray: on a cluster or cloud that Ray runs on, or on a Ray of this machine's own."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nystra_bench.errors import UserError
from nystra_bench.instruments.environment import THREAD_VARIABLES
from nystra_bench.sweep.executors.cluster import Call, ClusterExecutor, Lost, Resources
from nystra_bench.sweep.inspection import child_environment

OBJECTS = 100 << 20
"""Bytes for the objects of a Ray of our own: sessions pass paths alone."""


class RayExecutor(ClusterExecutor):
    """Ray starts a task again whose worker died; it goes on where that one was.

    Args:
        address: of the cluster's head, as ``auto`` or ``10.0.0.1:6379``; None starts a Ray on this machine alone, which
            listens on the loopback address and ends with the run.
        cpus, gpus, memory_gb: what each task asks for. Its threads are as many as its processors, unless
            ``device.threads`` or ``OMP_NUM_THREADS`` says otherwise.
        parallel: tasks that run at a time, at most.
        images_per_job: see ``ClusterExecutor``.
        retries: how often a task is started again.
        resources: further resources of Ray's as ``{a100: 1}``, which name a kind of machine.

    Raises:
        ValueError: a value does not fit.
    """

    def __init__(
        self,
        address: str | None = None,
        cpus: int = 2,
        gpus: int = 0,
        memory_gb: float | None = None,
        parallel: int = 16,
        retries: int = 5,
        resources: Mapping[str, Any] | None = None,
        images_per_job: int | None = None,
    ):
        super().__init__(cpus, gpus, memory_gb, parallel, images_per_job)
        if retries < 0:
            raise ValueError(f"executor.retries={retries} is out of range: accepted are whole numbers from 0 on")
        if not isinstance(resources, Mapping | None):
            raise ValueError(f"executor.resources={resources} does not fit: accepted are null and {{NAME: amount}}")
        self.address, self.retries, self.resources = address, retries, dict(resources or {})

    def available(self) -> str | None:
        if importlib.util.find_spec("ray") is None:
            return "Ray is not installed: pip install 'nystra-bench[ray]'"
        return None

    @contextmanager
    def connected(self) -> Iterator[None]:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else Ray would report to its makers
        import ray

        where: dict[str, Any] = {"address": self.address}
        if self.address is None:
            where = {"address": "local", "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
            where |= {"object_store_memory": OBJECTS}
        where |= {"runtime_env": {"env_vars": self._environment()}, "logging_level": logging.WARNING}
        try:
            ray.init(**where, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError(
                f"executor.address={self.address} does not answer ({_first(error)}): accepted are the address of a Ray "
                "cluster's head, auto, and null, which starts Ray on this machine"
            ) from error
        try:
            yield
        finally:
            ray.shutdown()

    def start(self, function: Callable[[Any], Any], calls: list[tuple[Any, Resources]], folder: Path) -> list[Call]:
        import ray

        remote = ray.remote(function)
        return [Task(remote.options(**self._options(resources)).remote(argument)) for argument, resources in calls]

    def _options(self, resources: Resources) -> dict[str, Any]:
        """What Ray is asked for.

        Raises:
            UserError: no machine has it: Ray would wait for one to come.
        """
        for name, kind, wanted in (("cpus", "CPU", resources.cpus), ("gpus", "GPU", resources.gpus)):
            if wanted > _most(kind):
                raise UserError(
                    f"executor.{name}={wanted} is more than any machine of the Ray cluster has: accepted are numbers "
                    f"up to {_most(kind)}"
                )
        # Alone on its machine is a task that asks for all the processors that the largest machine has.
        cpus = _most("CPU") if resources.alone else resources.cpus
        asked: dict[str, Any] = {"num_cpus": cpus, "num_gpus": resources.gpus, "max_retries": self.retries}
        asked |= {"memory": round(1e9 * resources.memory_gb)} if resources.memory_gb else {}
        return asked | {"resources": self.resources}

    def _environment(self) -> dict[str, str]:
        """What tasks take over of this process's: where the package, its caches and locks are, and how many threads."""
        own = {name: value for name, value in os.environ.items() if name.startswith("NYSTRA_BENCH_")}
        threads = {"OMP_NUM_THREADS": str(self.cpus)}  # else Ray says one for each processor, of a whole machine too
        threads |= {name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ}
        return own | threads | {"PYTHONPATH": child_environment()["PYTHONPATH"]}


class Task:
    """A task of Ray."""

    def __init__(self, reference: Any):
        self.reference, self.name = reference, reference.task_id().hex()[:16]

    def done(self) -> bool:
        import ray

        return bool(ray.wait([self.reference], timeout=0)[0])

    def result(self) -> Any:
        import ray

        try:
            return ray.get(self.reference)
        except ray.exceptions.RayTaskError as error:  # the function raised
            raise Lost(f"failed ({type(error.cause).__name__}: {_first(error.cause)})") from error
        except ray.exceptions.RayError as error:
            raise Lost(f"ended before it was done ({type(error).__name__}: {_first(error)})") from error

    def cancel(self) -> None:
        import ray

        ray.cancel(self.reference, force=True)


def _first(error: BaseException) -> str:
    return (str(error).strip() or "without a word").splitlines()[0]


def _most(kind: str) -> int:
    """The most processors (``CPU``) or GPUs that a machine of the cluster has."""
    import ray

    return max((int(node["Resources"].get(kind, 0)) for node in ray.nodes() if node["Alive"]), default=0)
