"""A session goes on after one of its parties died."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from backends.registry import resolve
from bench.conformance import random_images, tiny_network
from bench.process import TrialError
from bench.session import Place, Session, Work


@pytest.mark.parametrize("privacy, role", [("plain", "client"), ("plain", "server"), ("encrypted", "server")])
def test_a_dead_party_is_started_anew(privacy: str, role: str, tmp_path: Path) -> None:
    """Its death is told with the operation and the signal; what has died is there again, and no answer changes."""
    network = tiny_network("polynomial", (1, 4, 4))
    images = random_images(network, 1)
    work = Work(resolve("openfhe")[0], "", network, random_images(network, 64, seed=3), model_privacy=privacy)
    with Session(work, Place(tmp_path / "party", time.monotonic() + 600)) as session:
        session.prepare()
        session.open()
        alive = {"client": session.client, "server": session.server}
        session.revive()
        assert {"client": session.client, "server": session.server} == alive
        os.kill(alive[role].pid, signal.SIGSEGV)
        with pytest.raises(TrialError, match=rf"^{role} killed by signal 11 \(SIGSEGV\) in "):
            session.ask(images)
        session.revive()
        assert np.abs(session.ask(images) - network.forward(images)).max() < 1e-2
        assert (session.client is alive["client"]) == (role == "server")  # else there are new keys, for both
