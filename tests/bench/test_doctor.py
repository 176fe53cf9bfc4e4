"""The doctor: each thing that is missing is a finding with a cure."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import doctor


def test_a_library_that_works() -> None:
    finding = doctor._library("numpy", lambda: "")
    assert finding.ok and not finding.cure and "extensions for CPython 310" in finding.found


@pytest.mark.parametrize(
    ("distribution", "module", "found"),
    [
        ("no-such-library", "no_such_library", "not installed"),
        ("numpy", "no_such_module", "cannot be imported: ModuleNotFoundError: No module named 'no_such_module'"),
        ("numpy", "os; os.abort()", "cannot be imported: exit code -6"),
    ],
)
def test_a_library_that_does_not(distribution: str, module: str, found: str) -> None:
    finding = doctor._library(distribution, lambda: doctor._import([module])[0])
    assert finding.ok is False and found in finding.found and finding.cure


def test_one_that_fails_hides_no_other() -> None:
    found = doctor._import(["json", "no_such_module", "os; print('noise')", "os; os.abort()", "re"])
    assert [bool(wrong) for wrong in found] == [False, True, False, True, False]
    assert "no_such_module" in found[1] and found[3] == "cannot be imported: exit code -6"


def test_each_library_is_imported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(doctor, "_import", lambda modules: [asked.append(module) or "" for module in modules])
    findings = [finding.subject for finding in doctor.findings(None)]
    assert sorted(asked) == sorted(set(asked)) and {"torch", "concrete.fhe", "openfhe"} <= set(asked)
    assert set(doctor.LIBRARIES) <= set(findings)


def test_data_that_is_not_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(doctor.tasks.DATA_DIR_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    finding = doctor._data(None)
    assert finding.ok is None and "--data-dir" in finding.cure
    (tmp_path / "breastmnist.npz").touch()
    assert doctor._data(tmp_path).found == "breastmnist"


def test_a_folder_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert doctor._writable().ok
    (tmp_path / "reports").rmdir()
    (tmp_path / "reports").touch()
    finding = doctor._writable()
    assert finding.ok is False and "--out" in finding.cure


@pytest.mark.parametrize("healthy", [True, None, False])
def test_only_what_is_necessary_decides(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], healthy: bool | None
) -> None:
    cure = "" if healthy else "the cure"
    monkeypatch.setattr(doctor, "findings", lambda _: iter([doctor.Finding("subject", healthy, "found", cure)]))
    assert doctor.run(None) is (healthy is not False)
    printed = capsys.readouterr().out
    assert "subject" in printed and cure in printed
