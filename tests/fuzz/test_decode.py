"""The coverage-guided fuzzer of the message decoder, for a while; it also has to find what it is meant to find."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def fuzz(folder: Path, script: Path, *options: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("atheris")
    seeds = folder / "seeds"
    seeds.mkdir()
    command = [sys.executable, str(script), *options, f"-artifact_prefix={folder}/", "-max_len=512", str(seeds)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_the_decoder_takes_any_bytes(tmp_path: Path) -> None:
    done = fuzz(tmp_path, HERE / "decode.py", "-max_total_time=30")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Done " in done.stderr and not list(tmp_path.glob("crash-*"))


@pytest.mark.slow
def test_the_fuzzer_finds_a_decoder_that_fails(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    script = (HERE / "decode.py").read_text().replace("def one(", "def as_it_is(")
    script = script.replace("Path(__file__).parents[2]", repr(str(ROOT)))
    fails = "def one(data: bytes) -> None:\n    1 / (data[:4] != wire.MAGIC)\n\n\ndef seeds("
    broken.write_text(script.replace("def seeds(", fails))
    done = fuzz(tmp_path, broken, "-max_total_time=30")
    assert done.returncode != 0 and "ZeroDivisionError" in done.stderr + done.stdout
