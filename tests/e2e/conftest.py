from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.command_line import CommandLine


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    command_line = CommandLine(tmp_path_factory.mktemp("home"))
    yield command_line
    for process in command_line.processes():
        process.kill()
