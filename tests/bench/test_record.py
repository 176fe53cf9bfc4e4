"""Records: saved whole or not at all, read back as they were, and damage is named."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.files import TEMPORARY, RunError, writer_of
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
    assert Store(tmp_path).finished(record().trial) == {}


def test_every_truncation_is_damage(tmp_path: Path) -> None:
    path = record().save(tmp_path)
    whole = path.read_bytes().rstrip()
    for size in range(0, len(whole), 37):
        path.write_bytes(whole[:size])
        with pytest.raises(RecordError):
            Record.load(path)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3),
    max_leaves=6,
)
fields = st.sampled_from(Record.__struct_fields__)


@given(st.dictionaries(fields, anything, min_size=1, max_size=4) | anything)
def test_any_content_is_a_record_or_refused(change: object) -> None:
    """Fields of a good record replaced by anything, and any JSON at all."""
    whole = msgspec.to_builtins(record())
    content = msgspec.json.encode(whole | change if isinstance(change, dict) else change)
    try:
        assert Record.decode(msgspec.json.encode(Record.decode(content))) == Record.decode(content)
    except RecordError as error:
        assert str(error)


@given(st.data())
def test_any_damage_is_read_or_refused(data: st.DataObject) -> None:
    damaged = bytearray(msgspec.json.encode(record()))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(RecordError):
        assert isinstance(Record.decode(bytes(damaged)), Record)


def test_a_deeply_nested_record_is_refused() -> None:
    with pytest.raises(RecordError):
        Record.decode(b'{"parameters":' + b"[" * 100_000)


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


def test_a_store_knows_what_is_finished_and_where(tmp_path: Path) -> None:
    record("done").save(tmp_path)
    record("bad", "failed", seed=1).save(tmp_path)
    store = Store(tmp_path)
    assert store.finished(Trial(backend="clear", model="fcnn", task="digits", timeout_s=9.0)) == {"done": "h"}
    assert store.finished(Trial(backend="clear", model="fcnn", task="digits", seed=1)) == {}


def test_the_record_of_a_lost_machine_is_replaced_by_that_of_any_other(tmp_path: Path) -> None:
    msgspec.structs.replace(record("lost", "failed"), machine={}).save(tmp_path)
    Store(tmp_path).add(record("good"))
    assert [path.stem for path in tmp_path.iterdir()] == ["good"]


def test_one_writer_at_a_time_and_leftovers_of_killed_ones_are_removed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with writer_of(run):
        (run / f"{TEMPORARY}a1b2c3d4").write_text("half")
        with pytest.raises(RunError, match=f"another run writes to {run}"), writer_of(run):
            pass
    with writer_of(run):
        assert list(run.iterdir()) == []
