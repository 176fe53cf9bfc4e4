"""Image-in-slot requests of full size on both libraries: products on residues beside the library's own scalar products.

``python -m pytest -m "" --benchmark-enable -s tests/benchmarks/test_offline.py`` prints one table. Server time is reading,
inferring and writing; the peak is of the server's process. `polycnn` has no yardstick: its own products take an hour.
"""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import pytest

from backends import registry
from bench.machine import available_threads
from bench.process import Party
from bench.runner import calibration
from bench.session import Place, Session, Work
from models import tasks, zoo

TASK = "digits"
CASES = [(model, backend) for model in ("fcnn", "polycnn-s", "polycnn") for backend in ("openfhe", "ckks")]
WITH_YARDSTICK = ("fcnn", "polycnn-s")
STAGES = ("deserialise", "infer", "serialise")
LIMIT_S = 3 * 3600
HEADER = f"{'model':10} {'library':8} {'products':9} {'images':>7} " + " ".join(f"{s + ' s':>13}" for s in STAGES)
rows: list[str] = [f"{HEADER} {'images/s':>9} {'peak GB':>8} {'worst error':>12} {'× own':>6}"]


@pytest.fixture(scope="module", autouse=True)
def table(request):
    yield
    print("", *rows, sep="\n")


def answered(server: Party, request: bytes) -> tuple[dict[str, float], int, bytes]:
    """Seconds of each stage, peak bytes, and the response."""
    replies = [server.call("deserialise", message=request), server.call("infer"), server.call("serialise")]
    seconds = {stage: reply.header["wall_s"] for stage, reply in zip(STAGES, replies)}
    return seconds, max(reply.header["peak_rss_bytes"] for reply in replies), replies[-1].blobs["message"]


@pytest.mark.slow
@pytest.mark.timeout(2 * LIMIT_S)
@pytest.mark.parametrize(("model", "backend"), CASES)
def test_offline(model: str, backend: str, benchmark, tmp_path) -> None:
    if not benchmark.enabled:
        pytest.skip("times are wanted")
    task = tasks.task(TASK)
    dataset = tasks.load(task)
    network = zoo.network(model, task, "polynomial")
    info = registry.backends()[backend]
    work = Work(info, "", network, calibration(dataset), scenario="offline", threads=available_threads())
    place = Place(tmp_path / backend, time.monotonic() + LIMIT_S)
    with Session(work, place) as session:
        batch = session.prepare().batch
        session.open()
        images = np.resize(tasks.normalise(dataset.test.images), (batch, *network.inputs[0].shape))
        request = session.request(images)
        own = None
        if model in WITH_YARDSTICK:
            yardstick = dataclasses.replace(info, module=f"tests.benchmarks.own.{backend}")
            with Party("server", yardstick, available_threads(), tmp_path / "own.log", place.deadline) as server:
                server.call("load", artifact=session.artifacts["server"])
                server.call("load_keys", **session.keys)
                own = answered(server, request)
        ours = benchmark.pedantic(answered, (session.server, request), rounds=1)
        for products, run in (("own", own), ("residues", ours)):
            if run is None:
                continue
            seconds, peak, response = run
            error = np.abs(session.logits(response) - network.forward(images)).max()
            speed = batch / sum(seconds.values())
            ratio = f"{sum(own[0].values()) / sum(seconds.values()):6.2f}" if own else ""
            stages = " ".join(f"{seconds[stage]:13.3f}" for stage in STAGES)
            start = f"{model:10} {backend:8} {products:9} {batch:7} {stages}"
            rows.append(f"{start} {speed:9.0f} {peak / 1e9:8.2f} {error:12.1e} {ratio}")
            assert error < 1e-2
        benchmark.extra_info["images_per_s"] = batch / sum(ours[0].values())
        benchmark.extra_info["peak_bytes"] = ours[1]
