"""Values of options that mean nothing: an error of usage before anything runs, and no folder of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import cli
from tests.e2e.command_line import CommandLine

WRONG = [
    ("run --images 1e3", "'--images': 1e3 is no whole number"),
    ("run --images 36893488147419103232", "is no whole number from 0 to"),
    ("run --seed 36893488147419103232", "is no whole number from 0 to"),
    ("run --threads 36893488147419103232", "Expected `int` <= "),
    ("run --threads 1,-2", "Expected `int` >= 0"),
    ("run --memory-limit inf", "inf is no size in GiB"),
    ("run --memory-limit nan", "nan is no size in GiB"),
    ("run --memory-limit 1e300", "1e300 is no size in GiB"),
    ("run --memory-limit -1", "-1 is no size in GiB"),
    ("run --timeout nan", "'--timeout'"),
    ("run --precision nan", "Expected `float` >= 0"),
    ("run --sampling-time inf", "Expected `float` <= "),
    ("run --bandwidth=", "'--bandwidth'"),
    (f"run --bandwidth {'9' * 400}Gbit", "'--bandwidth'"),
    ("run --out=", "'--out': a path, not nothing"),
    ("run --cluster=", "'--cluster': an address"),
    ("run --backend ,", "'--backend': a name, not nothing"),
    ("run --task ,", "'--task': a name, not nothing"),
    ("run --backend clear:", "backend 'clear' has no variant ''"),
    ("run --data-dir nowhere", "there is no folder nowhere"),
    ("run --backend ckks --model fcnn@fast", "ckks runs polynomial ones: choose --model fcnn"),
    ("run --backend tfhe,clear --model fcnn@fast", "clear runs float ones: choose --model fcnn"),
    ("run --backend tfhe:naive --model fcnn@fast", "tfhe:naive runs float ones: choose --model fcnn"),
    ("run --suite binary.toml", "binary.toml: "),
    ("run --suite nested.toml", "nested.toml: "),
    ("run --suite .", "no suite '.'"),
    ("explain --threads -1", "-1 is no whole number"),
    ("explain --backend ckks --model fcnn@fast", "ckks runs polynomial ones: choose --model fcnn"),
    ("explain --data-dir nowhere", "there is no folder nowhere"),
    ("train --seed 1e23", "1e23 is no whole number"),
    ("train --seed 100000000000000000000000", "is no whole number"),
    ("train --out=", "a path, not nothing"),
    ("tune --threads -1", "-1 is no whole number"),
    ("tune --out=", "a path, not nothing"),
    ("test --backend ,", "a name, not nothing"),
    ("list --data-dir nowhere", "there is no folder nowhere"),
    ("report=", "No such command"),
]


@pytest.mark.parametrize("line, message", WRONG)
def test_usage_errors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, line: str, message: str
) -> None:
    """In this process, which is faster: there are many."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "binary.toml").write_bytes(b'name = "\xff\xfe"')
    (tmp_path / "nested.toml").write_text("name = " + "[" * 100_000)
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr("sys.argv", ["bench", *line.split()])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed = capsys.readouterr()
    assert ended.value.code == 2, printed.err
    assert message in printed.err and printed.out == ""
    assert sorted(tmp_path.iterdir()) == before


def test_version_help_and_data(bench: CommandLine, tmp_path: Path) -> None:
    assert bench("--version").stdout.startswith("fhe-medmnist-bench ")
    assert bench("-h").stdout == bench("--help").stdout != ""
    assert bench("run", "-h").returncode == 0
    (tmp_path / "breastmnist.npz").touch()
    listed = bench("list", "--data-dir", tmp_path).stdout
    assert [line.split()[0] for line in listed.splitlines() if line.endswith("; data here")] == [
        "breastmnist",
        "digits",
    ]


def test_a_folder_that_is_not_ours_is_left_alone(bench: CommandLine, tmp_path: Path) -> None:
    """Only what a killed run of ours left behind is removed."""
    theirs = [tmp_path / ".unfinished-novel", tmp_path / "deep" / ".unfinished-abcd1234", tmp_path / ".unfinished-"]
    (tmp_path / "deep").mkdir()
    (tmp_path / "records").mkdir()
    (tmp_path / ".unfinished-folder12").mkdir()
    ours = [tmp_path / ".unfinished-abcd1234", tmp_path / "records" / ".unfinished-a_b2c3d4"]
    for path in (*theirs, *ours):
        path.write_text("x")
    options = ("--backend", "clear", "--task", "digits", "--images", 1, "--precision", 0)
    assert bench("run", *options, "--out", tmp_path).returncode == 0
    assert all(path.exists() for path in (*theirs, tmp_path / ".unfinished-folder12"))
    assert not any(path.exists() for path in ours)
    exported = bench("export", tmp_path, "--to", "pyperf")
    assert exported.returncode == 0


def test_nothing_to_export(bench: CommandLine, tmp_path: Path) -> None:
    options = ("--backend", "fake:error", "--task", "digits", "--images", 1, "--out", tmp_path)
    assert bench("run", *options).returncode == 1
    for to in ("pyperf", "pytest-benchmark"):
        done = bench("export", tmp_path, "--to", to)
        assert done.returncode == 1 and done.stderr == "bench: there are no timings to export: no trial is ok\n"
