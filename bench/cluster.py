"""Sends trials to the workers of a Dask cluster, one at a time to each, and stores the records that come back.

A worker is another machine's `python -m bench run`: it loads data and networks by their names, starts the parties,
names the record by its own machine and sends it as the bytes of the file. Trials of workers that are lost are sent to
others. Dask trusts whoever reaches its ports, so a cluster is for machines of one owner; messages between the parties
stay on the worker's machine and are checked as ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import tempfile
import threading
import uuid
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import msgspec
from distributed import Client, Future, KilledWorker, LocalCluster, as_completed, get_worker
from distributed.comm import resolve_address
from distributed.core import rpc

from bench import machine, process, runner, trials
from bench.files import RunError
from bench.record import Record, RecordError, Store, Trial
from bench.trials import Options, Report

LOCAL = "local"
TRIAL = {"trial": 1}  # the resource that a worker declares and a trial takes
PATIENCE_S = 10.0  # for a scheduler to answer and a first worker to be there
WATCH_S = 0.5
LOG_BYTES = 1 << 16  # kept of a party's log


# -- here --------------------------------------------------------------------------------------------------------------


class Cluster:
    """A scheduler and its workers, each of which takes one trial at a time."""

    def __init__(self, client: Client) -> None:
        """Raises RunError for a worker that takes none, or several."""
        workers = client.scheduler_info(n_workers=-1)["workers"]
        assert client.scheduler is not None
        if bad := [address for address, about in workers.items() if about["resources"] != TRIAL]:
            raise RunError(
                f"{len(bad)} of {len(workers)} workers do not take one trial at a time ({bad[0]}); start each with: "
                f"dask worker {client.scheduler.address} --nthreads 1 --resources trial=1"
            )
        self._client = client
        self._hosts = {address: about["host"] for address, about in client.run(machine.machine).items()}

    def notes(self) -> list[str]:
        """What a reader of the report has to know about the cluster."""
        shared = [host for host, workers in Counter(self._hosts.values()).items() if workers > 1]
        return [f"Several workers ran on machine {host}: their trials may have slowed each other." for host in shared]

    def run(
        self, wanted: list[Trial], options: Options, store: Store, folder: Path, report: Report
    ) -> Generator[Record, None, None]:
        """As `bench.trials.here`, in any order. Whoever stops before the last record cancels the other trials.

        Raises RunError if the scheduler is lost.
        """
        asked = {self._submit(n, trial, options, store.finished(trial)): trial for n, trial in enumerate(wanted)}
        report(None, f"{len(wanted)} trials on {len(self._hosts)} workers")
        try:
            for future in as_completed(list(asked), loop=self._client.loop):
                yield _store(future, asked.pop(future), store, folder)
        finally:
            for future, trial in asked.items():
                if future.status == "finished":
                    _store(future, trial, store, folder)
            self._client.cancel(list(asked), force=True)

    def _submit(self, number: int, trial: Trial, options: Options, finished: dict[str, str]) -> Future:
        """finished: keys of records and their hosts, one of which need not do it again."""
        near = [address for address, host in self._hosts.items() if host in finished.values()]
        return self._client.submit(
            _on_worker,
            msgspec.to_builtins(trial),
            options,
            list(finished),
            key=f"{trial.label} {uuid.uuid4().hex}",
            priority=-number,
            resources=TRIAL,
            workers=near or None,
            allow_other_workers=bool(near),
        )


@contextlib.contextmanager
def connect(address: str) -> Iterator[Cluster]:
    """The cluster of the scheduler at `address`, or one of a single worker process on this machine (`LOCAL`).

    Raises RunError: nobody answers, or a worker takes more than one trial at a time.
    """
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what matters becomes a record or a RunError
    with contextlib.ExitStack() as stack:
        if address == LOCAL:
            address = stack.enter_context(_local()).scheduler_address
        try:
            asyncio.run(_answers(address))  # Client would wait for ever for who accepts and is silent
            client = stack.enter_context(Client(address, timeout=PATIENCE_S, set_as_default=False))
            client.wait_for_workers(1, timeout=PATIENCE_S)
        except (
            Exception
        ) as error:  # no connection, no worker in time, no such address, another protocol: each has its own
            why = " ".join(str(error).split()) or f"silence for {PATIENCE_S:.0f} s"
            raise RunError(f"no Dask scheduler with a worker answers at {address}: {why}") from error
        yield Cluster(client)


async def _answers(address: str) -> None:
    """Raises whatever Dask does if a scheduler does not, within `PATIENCE_S`."""
    scheduler = rpc(resolve_address(address), timeout=PATIENCE_S)
    try:
        await asyncio.wait_for(scheduler.identity(n_workers=0), PATIENCE_S)
    finally:
        await scheduler.close_rpc()


def _local() -> LocalCluster:
    return LocalCluster(
        n_workers=1,
        threads_per_worker=1,
        resources=TRIAL,
        memory_limit=0,
        dashboard_address=None,
        silence_logs=logging.CRITICAL,
    )


def _store(future: Future, trial: Trial, store: Store, folder: Path) -> Record:
    if future.status == "cancelled":
        raise RunError("the connection to the cluster was lost")
    if error := future.exception():
        lost = "every worker that ran it was lost" if isinstance(error, KilledWorker) else f"on the worker: {error!r}"
        return store.add(runner.unmeasured(trial, "failed", lost, about_machine={}))
    done, logs = future.result()
    for name, content in logs.items():
        path = folder / "logs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    try:
        return store.get(done) if isinstance(done, str) else store.add(Record.decode(done))
    except RecordError as error:
        return store.add(runner.unmeasured(trial, "failed", f"a worker of another version: {error}", about_machine={}))


# -- on a worker -------------------------------------------------------------------------------------------------------


def _on_worker(trial: dict[str, Any], options: Options, finished: list[str]) -> tuple[bytes | str, dict[str, bytes]]:
    """The record as bytes, or its key if it is among those `finished`; and the ends of the parties' logs."""
    os.environ.pop("MALLOC_TRIM_THRESHOLD_", None)  # Dask's own setting, which would be that of the parties, too
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, _ending_with_its_task():
        asked = msgspec.convert(trial, Trial)
        done = trials.carry_out(asked, options, finished, Path(folder), lambda *_, **__: None)
        logs = {path.name: path.read_bytes()[-LOG_BYTES:] for path in Path(folder).glob("logs/*")}
    return done if isinstance(done, str) else msgspec.json.encode(done), logs


@contextlib.contextmanager
def _ending_with_its_task() -> Iterator[None]:
    """Ends the parties when nobody wants the record any more: the run was interrupted, or its process was killed."""
    worker, over = get_worker(), threading.Event()
    key = worker.get_current_task()

    def watch() -> None:
        while not over.wait(WATCH_S):
            task = worker.state.tasks.get(key)
            if task is None or task.state == "cancelled":
                process.kill_all()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
