"""Ingest on a cluster: `python -m launch.ingest --manifest series.csv --store s3://... --key FILE`.

The order of the steps is `storage.ingest`'s; here is only who does the work. Ray Data hands series
to actors on the cluster's nodes. Each actor keeps one bounded process of `storage.workers`, so that
a hostile file costs that process and not the actor; rows come back to the driver, which holds the
store's lock and commits them as they come.

Every node must see the input files, the store and the key's file under the same paths (a shared
folder, a mounted bucket, a Kubernetes secret). The key itself is never sent through Ray, which may
write what it is given to its logs and spill it to disks: workers read the file, and refuse another
key than the driver's.
"""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click
import numpy as np
import ray
import ray.data

from launch.cluster import cluster
from launch.job_exit import job_exit
from launch.room import living_nodes, make_room, places
from pmg.config import LaunchConfig
from storage.errors import IngestError
from storage.ingest import Step, ingest
from storage.ingest_report import IngestReport
from storage.place import Place
from storage.store import Spacing
from storage.workers import Done, Workers

__all__ = ["RayWorkers", "ingest_on_cluster"]

Item = TypeVar("Item")
Result = TypeVar("Result")

_MEMORY_BYTES = 4 << 30

# So many items go to Ray in one go, each as a task of its own: results come one by one, and the
# driver keeps no more than this of what Ray knows of them.
_ITEMS_AT_ONCE = 2000


class RayWorkers:
    """An `Executor` of Ray actors; Ray must be running.

    count: at most so many, one core each; None: as many as there is room for. A cluster that scales
    itself is asked for room, for one if count is None. memory_bytes: what each may have, which Ray
    reserves on its node. An actor whose node is lost is replaced, and its item done again.
    """

    def __init__(self, count: int | None = None, memory_bytes: int = _MEMORY_BYTES) -> None:
        needs = {"CPU": 1, "memory": memory_bytes}
        make_room(needs, count or 1)
        room = places(living_nodes(), needs)
        if room < 1:
            there = ray.cluster_resources()
            raise IngestError(
                f"the cluster has {there.get('CPU', 0):g} cores and {there.get('memory', 0):.3g} "
                f"bytes of memory; a worker needs 1 core and {memory_bytes} bytes on one node"
            )
        self._count = room if count is None else min(count, room)
        self._memory_bytes = memory_bytes

    def map(
        self, work: Callable[[Item], Result], items: Iterable[Item]
    ) -> Generator[Done[Result], None, None]:
        """See `storage.workers.Executor`. Items are taken as many at a time as Ray is given."""
        numbers: dict[str, int] = {}
        waiting = enumerate(items)
        while some := list(itertools.islice(waiting, _ITEMS_AT_ONCE)):
            for row in self._rows(work, some):
                result, seconds = pickle.loads(row["outcome"])
                if isinstance(result, Exception):
                    raise result
                number = numbers.setdefault(row["actor"], len(numbers))
                yield Done(int(row["index"]), result, number, seconds)

    def _rows(
        self, work: Callable[[Any], Any], items: list[tuple[int, Any]]
    ) -> Iterator[dict[str, Any]]:
        rows = [{"index": index, "item": pickle.dumps(item)} for index, item in items]
        outcomes: ray.data.Dataset = ray.data.from_items(
            rows, override_num_blocks=len(rows)
        ).map_batches(
            _Actor,
            fn_constructor_args=(pickle.dumps(work), self._memory_bytes),
            batch_size=1,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(self._count, len(rows))),
            num_cpus=1,
            memory=self._memory_bytes,
        )
        yield from outcomes.iter_rows()


class _Actor:
    """One worker process, on whichever node Ray starts this."""

    def __init__(self, work: bytes, memory_bytes: int) -> None:
        self._work = pickle.loads(work)
        self._workers = Workers(1, memory_bytes)
        self._name = ray.get_runtime_context().get_actor_id()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        outcomes = [self._outcome(pickle.loads(item)) for item in batch["item"]]
        return {
            "index": batch["index"].tolist(),
            "outcome": outcomes,
            "actor": [self._name] * len(outcomes),
        }

    def _outcome(self, item: object) -> bytes:
        """Result and seconds; what the work raised in place of a result."""
        result: object
        try:
            (done,) = self._workers.map(self._work, [item])
            result, seconds = done.result, done.seconds
        except Exception as error:
            result, seconds = error, 0.0
        return pickle.dumps((result, seconds))


def ingest_on_cluster(
    root: Path | None,
    store: str,
    *,
    key_path: Path,
    manifest: Path | None = None,
    address: str | None = None,
    workers: int | None = None,
    memory_bytes: int = _MEMORY_BYTES,
    **options: Any,
) -> IngestReport:
    """`storage.ingest.ingest` with the cluster's workers; the same volumes come of it.

    address: of a Ray cluster; None: that of the Ray job this is, or one of this machine.
    """
    launch = LaunchConfig(address=address, workers=workers or 1)
    with cluster(launch):
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        return ingest(
            root and root.resolve(),
            Place.of(store).address,
            manifest=manifest and manifest.resolve(),
            key_path=key_path.resolve(),
            executor=RayWorkers(workers, memory_bytes),
            **options,
        )


def _show(step: Step) -> None:
    if step.report is not None:
        one = step.report
        click.echo(f"[{step.series}, {step.share:.0%}] {one.verdict}  {one.path}")


@click.command()
@click.argument("root", required=False, type=click.Path(exists=True, path_type=Path))
@click.option("--store", required=True, metavar="FOLDER|URL")
@click.option("--key", "key_path", required=True, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--manifest", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--domain", type=click.IntRange(1, 2))
@click.option("--phase")
@click.option("--rules", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--spacing", "spacing_mm", nargs=3, type=float, metavar="Z Y X")
@click.option("--address", help="of a Ray cluster, such as auto; none: a local one")
@click.option(
    "--workers", type=click.IntRange(min=1), help="at most; by default all cores that are there"
)
@click.option(
    "--memory", default=4.0, show_default=True, help="GiB that a worker may have and Ray reserves"
)
def main(memory: float, spacing_mm: Spacing | None, **options: Any) -> None:
    """Bring series into a store with a Ray cluster; see `pmg ingest` for the arguments.

    Paths must be the same on every node. Ends with 0 when all is done, 130 when it was stopped.
    """
    with job_exit():
        report = ingest_on_cluster(
            **options,
            spacing_mm=spacing_mm or None,
            memory_bytes=int(memory * 2**30),
            progress=_show,
        )
    click.echo(report.table())


if __name__ == "__main__":
    main()
