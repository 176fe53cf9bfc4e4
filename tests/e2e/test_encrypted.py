"""One real encrypted run of each backend, through the command line, on the task that needs no download."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from backends.registry import backends
from bench import metrics
from tests.e2e.command_line import PATIENCE_S, CommandLine, records

BACKENDS = {info.name: info for info in backends().values() if not info.test_only}
IMAGES = 3


@pytest.mark.timeout(PATIENCE_S)
@pytest.mark.parametrize("backend", BACKENDS)
def test_encrypted_run_on_digits(bench: CommandLine, tmp_path: Path, backend: str) -> None:
    started = time.time()
    options = ("--task", "digits", "--images", IMAGES, "--threads", 1, "--precision", 0, "--out", tmp_path)
    done = bench("run", "--backend", backend, *options)
    assert done.returncode == 0, done.stderr
    record = records(tmp_path)[backend]
    quality = metrics.quality(record.outputs)
    assert (record.status, quality.n, record.network["lowering"]) == ("ok", IMAGES, BACKENDS[backend].lowering)
    assert quality.agreeing >= IMAGES - 1

    names = {(stage.role, stage.name) for stage in record.stages}
    assert names >= {("owner", "prepare"), ("client", "keygen"), ("server", "load_keys"), ("client", "decrypt")}
    infer = record.stage("server", "infer")
    assert len(infer.wall_s) == len(infer.cpu_s) == IMAGES and infer.cold_wall_s > 0 and len(infer.warmup_wall_s) == 1
    assert sum(sum(stage.wall_s) for stage in record.stages) < time.time() - started  # seconds, not milliseconds
    assert all(stage.peak_rss_bytes > 10e6 for stage in record.stages)  # bytes, not kibibytes
    assert record.sizes["request_bytes"] > 0 and record.sizes["response_bytes"] > 0

    if BACKENDS[backend].scheme != "clear":
        assert record.security["bits"] >= 128 and record.parameters
        assert sum(size for name, size in record.sizes.items() if name.endswith("_key_bytes")) > 10_000
        assert quality.logit_error_max > 0 or BACKENDS[backend].lowering == "integer"  # an approximate scheme did it
