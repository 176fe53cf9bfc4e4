"""Whatever a record says, it is refused with a reason or every report can be made of it."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from bench import export, report
from bench.record import Record, RecordError, Store, Trial
from bench.report import terminal
from tests.bench.records_for_report import record
from tests.bench.test_record import anything

WHOLE = msgspec.to_builtins(record())
FREE = ("parameters", "security", "notes", "network", "machine")  # whose values the types leave open
TEXTS = ["", "x", "clear", "ok", "wrong", "2020-01-01", "9999-12-31T23:59:59", "multi-class", "../x", "\0", "a" * 300]
OTHERS: dict[type, list[Any]] = {
    bool: [True, False],
    int: [0, -1, 1, 2, 2**31, 2**53 - 1, 2**53, 2**63, 10**30],
    float: [0, -1.0, 1e-308, 1e-320, 1e308],
    str: TEXTS,
    dict: [{}],
    type(None): [None, 1, "x"],
}


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to every value of a record, of lists to their first ones."""
    if path:
        yield path
    if isinstance(value, (dict, list)):
        for name in list(value)[:20] if isinstance(value, dict) else range(min(2, len(value))):
            yield from places(value[name], (*path, name))


@st.composite
def changed(draw: st.DrawFn) -> dict[str, Any]:
    """A good record with up to three values replaced by others of their type, or by anything where that is allowed."""
    content = copy.deepcopy(WHOLE)
    for *path, name in draw(st.lists(st.sampled_from(list(places(WHOLE))), min_size=1, max_size=3, unique=True)):
        within = content
        try:
            for step in path:
                within = within[step]
            old = within[name]
        except (LookupError, TypeError):  # another change took it away
            continue
        if [*path, name][0] in FREE:
            within[name] = draw(anything)
        elif isinstance(old, list):
            within[name] = draw(st.sampled_from([[], old[:1], old + old]))
        else:
            within[name] = draw(st.sampled_from(OTHERS[type(old)]))
    return content


@settings(max_examples=60)
@given(changed())
def test_a_record_is_refused_or_reported(content: dict[str, Any]) -> None:
    try:
        made = Record.decode(json.dumps(content).encode())
    except RecordError as error:
        assert str(error)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for each in (made, record("openfhe"), record("clear")):
            each.save(folder / "records")
        assert all(path.stat().st_size for path in report.write(folder))
        run = report.read(folder)
        assert all(exported(run) for exported in export.FORMATS.values())
        with open("/dev/null", "w") as nowhere:
            terminal.show_run(run, Console(file=nowhere))
            for index in range(len(run.records)):
                terminal.show_trial(run, index, Console(file=nowhere))


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"started_at": "yesterday"}, "Invalid isoformat string"),
        ({"machine": {"host": 7}}, "the machine has no name"),
        ({"security": {"bits": "128"}}, "the security level is no number"),
        ({"stages": []}, "its trial is ok and has no stages"),
        ({"key": "../../escaped"}, "Expected `str` matching regex"),
        ({"batch": 0}, "Expected `int` >= 1"),
        ({"outputs": WHOLE["outputs"] | {"labels": [[0]]}}, "its outputs are not of the same 40 images"),
        ({"outputs": WHOLE["outputs"] | {"labels": [[0], [0, 1]] * 20}}, "its outputs have rows of different lengths"),
    ],
)
def test_what_does_not_fit_together_is_named(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(RecordError, match=reason):
        Record.decode(json.dumps(WHOLE | change).encode())


def test_a_type_that_a_report_cannot_show_is_named_in_one_sentence(tmp_path: Path) -> None:
    path = record().save(tmp_path / "records")
    path.write_text(path.read_text().replace('"duration_s": 12.5', '"duration_s": "long"'))
    assert Store(tmp_path / "records").damaged == [
        f"cannot read record {path}: Expected `float`, got `str` - at `$.duration_s`; delete it and run the trial again"
    ]


def test_no_two_trials_share_the_names_of_their_logs() -> None:
    usual = Trial(backend="ckks", model="fcnn", task="digits")
    others = [
        {"backend": "ckks:naive"}, {"model": "fcnn@fast"}, {"task": "breastmnist"}, {"scenario": "offline"},
        {"model_privacy": "encrypted"}, {"threads": 2}, {"images": 3}, {"seed": 1}, {"precision": 0.1},
    ]  # fmt: skip
    slugs = {msgspec.structs.replace(usual, **other).slug for other in others}
    assert len(slugs) == len(others) and usual.slug not in slugs
    assert all("/" not in slug and slug.isascii() and slug.startswith("ckks-") for slug in slugs)
    assert msgspec.structs.replace(usual, timeout_s=1.0).slug == usual.slug
