"""Records: saved whole or not at all, read back as they were, and damage is named."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from bench.record import SCHEMA, Record, RecordError, Stage, Store, Trial, records_in


def record(key: str = "k", status: str = "ok", **trial: object) -> Record:
    return Record(
        key=key,
        trial=Trial(**{"backend": "clear", "model": "fcnn", "task": "digits"} | trial),
        status=status,
        started_at="2030-01-01T00:00:00+00:00",
        duration_s=1.5,
        stages=[Stage(role="server", name="infer", wall_s=[0.25, 1e-7], cpu_s=[0.5, 0.0], cold_wall_s=3.0)],
        sizes={"request_bytes": 2**40},
        machine={"host": "h"},
    )


def test_round_trip(tmp_path: Path) -> None:
    path = record().save(tmp_path / "run" / "records")
    assert path.name == "k.json" and list(records_in(tmp_path / "run")) == [path]
    assert Record.load(path) == record()


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_failed_save_keeps_the_old_record_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    path = record().save(tmp_path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, function, full)
    with pytest.raises(OSError, match="No space left"):
        record(status="failed").save(tmp_path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"key": "k"}', b"\xff\xfe", b"null"])
def test_damaged_record_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "k.json"
    path.write_bytes(content)
    with pytest.raises(RecordError, match=f"cannot read record {path}.*delete it and run the trial again"):
        Record.load(path)
    assert Store(tmp_path).get("k") is None


def test_every_truncation_is_damage(tmp_path: Path) -> None:
    path = record().save(tmp_path)
    whole = path.read_bytes().rstrip()
    for size in range(0, len(whole), 37):
        path.write_bytes(whole[:size])
        with pytest.raises(RecordError):
            Record.load(path)


def test_record_of_another_schema(tmp_path: Path) -> None:
    path = msgspec.structs.replace(record(), schema=SCHEMA + 1).save(tmp_path)
    with pytest.raises(RecordError, match=f"has schema {SCHEMA + 1}"):
        Record.load(path)


def test_store_replaces_failures_of_the_same_trial_only(tmp_path: Path) -> None:
    record("old", "failed", timeout_s=1.0).save(tmp_path)
    record("other", "failed", task="breastmnist").save(tmp_path)
    record("good").save(tmp_path)
    store = Store(tmp_path)
    store.add(record("new", "timeout"))
    assert {path.stem for path in tmp_path.iterdir()} == {"new", "other", "good"}
    store.add(record("final"))
    assert {path.stem for path in tmp_path.iterdir()} == {"final", "other", "good"}
