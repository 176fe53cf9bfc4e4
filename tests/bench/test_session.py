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
from bench.session import REQUEST, Place, Session, Work
from models import encoder_training, tasks
from models.encoder import Encoder
from models.inputs import Latent


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


def test_the_client_encodes_before_it_encrypts(tmp_path: Path) -> None:
    """The backend sees latents alone; what encoding costs is in the ledger of the client, and in the whole request."""
    data = tasks.load(tasks.task("digits"))
    encoder = Encoder(encoder_training.train(Latent(), data, share=0.002))
    network = tiny_network("polynomial", encoder.shape)
    images = data.test.images[:2].astype(np.float32) / 255
    calibration = encoder(data.train.images[:64] / np.float32(255))
    work = Work(resolve("ckks")[0], "", network, calibration, encoder=encoder)
    with Session(work, Place(tmp_path / "party", time.monotonic() + 600)) as session:
        session.prepare()
        session.open()
        logits = np.concatenate([session.ask(image[None]) for image in images])
        assert np.abs(logits - network.forward(encoder(images))).max() < 1e-2
        ledger = session.ledger
        encode, encrypt = (ledger.stages["client", name] for name in ("encode", "encrypt"))
        assert len(encode.wall_s) == len(encrypt.wall_s) == 2 and encode.peak_rss_bytes
        assert ledger.sizes["encoder_bytes"] == len(encoder.network.to_bytes())
        without = {name: stage for name, stage in REQUEST.items() if name != "encode"}
        assert ledger.totals(REQUEST) == pytest.approx(np.add(ledger.totals(without), encode.wall_s).tolist())
