"""A session: the protocol of `backends.api` between owner, client and server, each in a process of its own.

Whoever runs a backend does so through this class: trials (`bench.runner`), searches (`bench.tune`), `bench explain` and the
conformance suite. It starts the parties, relays bytes between client and server, and enters what each call cost into a
`Ledger`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import numpy as np

from backends import wire
from backends.api import Training
from backends.registry import BackendInfo
from bench.process import Party, TrialError
from bench.record import Role, Stage
from models.encoder import Encoder
from models.network import Network

# What happens once, and what happens in every request, in order: name → (role, operation of the party, meaning).
ONCE: dict[str, tuple[Role, str, str]] = {
    "prepare": ("owner", "prepare", "the owner compiles, encodes or encrypts the network"),
    "client_load": ("client", "load", "the client loads its artifact"),
    "load_encoder": ("client", "load_encoder", "the client loads the encoder, where the model reads latents"),
    "server_load": ("server", "load", "the server loads its artifact"),
    "keygen": ("client", "keygen", "the client makes and serialises the keys"),
    "load_keys": ("server", "load_keys", "the server loads the evaluation keys"),
    "encrypt_model": ("owner", "encrypt_model", "the owner encrypts the weights under the client's public key"),
    "load_model": ("server", "load_model", "the server loads the encrypted weights"),
}
REQUEST: dict[str, tuple[Role, str, str]] = {
    "encode": ("client", "encode", "the client makes latents of the images, where the model reads latents"),
    "encrypt": ("client", "encrypt", "the client encrypts the images of one request"),
    "serialise_request": ("client", "serialise", "the client turns the ciphertexts into bytes"),
    "deserialise_request": ("server", "deserialise", "the server reads the request"),
    "infer": ("server", "infer", "the server evaluates the network on ciphertexts"),
    "serialise_response": ("server", "serialise", "the server turns the result into bytes"),
    "deserialise_response": ("client", "deserialise", "the client reads the response"),
    "decrypt": ("client", "decrypt", "the client decrypts the logits"),
    "refresh": (
        "client",
        "refresh",
        "the client decrypts and encrypts anew between rounds, where a request has several",
    ),
}
OPTIONAL = ("encode", "refresh")  # stages that not every request has
SERVER_REQUEST = {name: stage for name, stage in REQUEST.items() if stage[0] == "server"}

MINIMUM_SECURITY_BITS = 128
Phase = Literal["cold", "warm-up", "sample"]
Own = TypeVar("Own", bound="Session")


@dataclass(frozen=True)
class Work:
    """What a backend shall do: `backends.api.Job`, and which of its variants shall do it.

    network: None while there is none to ask about. calibration: images (n, channels, height, width) float32 in [0, 1] or,
    with an encoder, their latents. encoder: what the client makes latents of images with; None: the network reads images.
    """

    backend: BackendInfo
    variant: str
    network: Network | None
    calibration: np.ndarray
    scenario: str = "single-stream"
    threads: int = 1
    model_privacy: str = "plain"
    options: dict[str, Any] = field(default_factory=dict)
    encoder: Encoder | None = None

    def result_shape(self, inputs: int) -> tuple[int, int]:
        """Of what the client decrypts for a request of so many inputs: logits of each."""
        assert self.network is not None
        return inputs, self.network.outputs

    def message(self) -> tuple[dict[str, Any], dict[str, bytes]]:
        """Header and blobs of `prepare` and `explain`."""
        names = ("variant", "scenario", "threads", "model_privacy", "options")
        assert self.network is not None
        blobs = {"network": self.network.to_bytes(), "calibration": wire.array_to_bytes(self.calibration)}
        return {"job": {name: getattr(self, name) for name in names}}, blobs


@dataclass(frozen=True)
class TrainingWork:
    """`Work` of the workload ``train``: `backends.api.TrainingJob`."""

    backend: BackendInfo
    variant: str
    training: Training
    threads: int = 1
    model_privacy: str = "plain"
    encoder: Encoder | None = None  # features are made before the session

    def result_shape(self, inputs: int) -> tuple[int, int]:
        """Weights of each output; before it stands any number of steps."""
        return self.training.outputs, self.training.features

    def message(self) -> tuple[dict[str, Any], dict[str, bytes]]:
        job = {name: getattr(self, name) for name in ("variant", "threads", "model_privacy")}
        return {"job": job, "training": asdict(self.training)}, {}


@dataclass(frozen=True)
class Place:
    """Where the parties of a session run and how far they may go.

    logs: path to which ``-<role>.log`` is added. deadline: on `time.monotonic`. memory_limit_bytes: of a party; 0: none.
    """

    logs: Path
    deadline: float
    memory_limit_bytes: int = 0


class OwnerReport(msgspec.Struct, frozen=True):
    """What `backends.api.Prepared` says beside the artifacts, with its types checked: a backend may get them wrong."""

    batch: Annotated[int, msgspec.Meta(ge=1)] = 1
    rounds: Annotated[int, msgspec.Meta(ge=1)] = 1
    parameters: dict[str, Any] = {}
    security: dict[str, Any] | None = None
    operations: dict[str, int] = {}
    notes: dict[str, Any] = {}


class Ledger:
    """What the calls of a session cost, as far as it came: a trial that ends early keeps what it measured."""

    def __init__(self) -> None:
        self.stages: dict[tuple[Role, str], Stage] = {}
        self.sizes: dict[str, int] = {}
        self.notes: dict[str, str] = {}

    def add(self, role: Role, operation: str, cost: dict[str, Any], phase: Phase, again: bool = False) -> None:
        """cost: the header of the party's reply, see `backends.party`. again: in a further round of the same request, to
        whose sample it is added."""
        stage = self.stages.setdefault((role, operation), Stage(role=role, name=operation, wall_s=[], cpu_s=[]))
        if again:
            walls, cpus = stage.wall_s, stage.cpu_s
            if not stage.round_wall_s:
                stage.round_wall_s = walls[-1:]
            stage.round_wall_s.append(cost["wall_s"])
            if walls:
                walls[-1] += cost["wall_s"]
                cpus[-1] += cost["cpu_s"]
        elif phase == "cold":
            stage.cold_wall_s = cost["wall_s"]
        elif phase == "warm-up":
            stage.warmup_wall_s.append(cost["wall_s"])
        else:
            if stage.round_wall_s:
                stage.round_wall_s.append(cost["wall_s"])
            stage.wall_s.append(cost["wall_s"])
            stage.cpu_s.append(cost["cpu_s"])
        stage.kept_rss_bytes = cost.get("kept_rss_bytes", stage.kept_rss_bytes)
        stage.peak_rss_bytes = max(stage.peak_rss_bytes or 0, cost["peak_rss_bytes"])
        if cost["peak_rss_is_of"] != "operation":
            self.notes["peak_rss"] = "of the process so far, not of each stage: this kernel cannot reset the peak"

    def totals(self, stages: dict[str, tuple[Role, str, str]]) -> list[float]:
        """Wall seconds of each timed request over these stages."""
        keys = {name: (role, operation) for name, (role, operation, _) in stages.items()}
        walls = (self.stages[key].wall_s for name, key in keys.items() if name not in OPTIONAL or key in self.stages)
        return [sum(request) for request in zip(*walls, strict=True)]


class Session:
    """One prepared network, a client that has made its keys, and a server that has loaded them.

    `prepare` and `open` come first, in this order; then `ask` as often as wanted, or its three parts `request`, `response`
    and `logits`. As a context manager it ends all its parties. Every method raises TrialError.
    """

    def __init__(self, work: Work | TrainingWork, place: Place, ledger: Ledger | None = None) -> None:
        self.work, self.ledger, self.report = work, ledger or Ledger(), OwnerReport()
        self._place, self._parties = place, ExitStack()
        self.owner: Party | None = None
        self._model = b""
        self.artifacts: dict[str, bytes] = {}
        self.keys: dict[str, bytes] = {}

    @property
    def deadline(self) -> float:
        """On `time.monotonic`."""
        return self._place.deadline

    def __enter__(self: Own) -> Own:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends all parties; `explain` and `prepare` start an owner anew."""
        self._parties.close()
        self.owner = None

    @property
    def alive(self) -> bool:
        """Whether the owner's process is there to answer."""
        return self.owner is not None and self.owner.alive

    def start(self, role: Role) -> Party:
        """A party of this backend that lives as long as the session."""
        place = self._place
        log = place.logs.with_name(f"{place.logs.name}-{role}.log")
        log.parent.mkdir(parents=True, exist_ok=True)
        party = Party(role, self.work.backend, self.work.threads, log, place.deadline, place.memory_limit_bytes)
        return self._parties.enter_context(party)

    def call(
        self,
        party: Party,
        operation: str,
        header: dict[str, Any] | None = None,
        /,
        phase: Phase = "sample",
        again: bool = False,
        **blobs: bytes,
    ) -> wire.Message:
        """One operation of a party, with its cost in the ledger."""
        reply = party.call(operation, header, **blobs)
        self.ledger.add(party.role, operation, reply.header, phase, again)
        return reply

    # -- what happens once -----------------------------------------------------------------------------------------

    def explain(self, work: Work | None = None) -> dict[str, Any]:
        """The plan of the backend, for the session's work or another of the same backend; the owner stays for more."""
        if self.owner is None:
            self.owner = self.start("owner")
        header, blobs = (work or self.work).message()
        return self.owner.call("explain", header, **blobs).header["explanation"]

    def prepare(self) -> OwnerReport:
        """The two artifacts and the report; the owner ends unless it has to encrypt the model later."""
        self.owner = self.start("owner")
        header, blobs = self.work.message()
        prepared = self.call(self.owner, "prepare", header, phase="sample", again=False, **blobs)
        if self.work.model_privacy == "plain":
            self.owner.close()
        self.artifacts = {side: prepared.blobs[side] for side in ("client", "server")}
        self.ledger.sizes |= {f"{side}_artifact_bytes": len(blob) for side, blob in self.artifacts.items()}
        try:
            self.report = msgspec.convert(prepared.header, OwnerReport)
        except msgspec.ValidationError as error:
            raise TrialError("failed", f"owner: prepare returned a malformed report: {error}") from error
        _require_security(self.work.backend, self.report)
        return self.report

    def open(self, seed: int = 0, progress: Callable[[str], None] = lambda step: None) -> None:
        """Starts client and server, makes and loads the keys and, if it is to be encrypted, the model."""
        self.client, self.server = self.start("client"), self.start("server")
        progress("load")
        self.call(self.client, "load", artifact=self.artifacts["client"])
        if (encoder := self.work.encoder) is not None:
            data = encoder.network.to_bytes()
            self.call(self.client, "load_encoder", {"quantised": encoder.quantised}, encoder=data)
            self.ledger.sizes["encoder_bytes"] = len(data)
        self.call(self.server, "load", artifact=self.artifacts["server"])
        progress("keygen")
        self.keys = self.call(self.client, "keygen", {"seed": seed}).blobs
        self.ledger.sizes |= {f"{name}_key_bytes": len(blob) for name, blob in self.keys.items()}
        progress("load keys")
        public = self.keys.pop("public", b"")  # for the owner alone
        self.call(self.server, "load_keys", phase="sample", again=False, **self.keys)
        if self.work.model_privacy == "encrypted":
            progress("encrypt model")
            assert self.owner is not None  # `prepare` left it for this
            self._model = self.call(self.owner, "encrypt_model", public=public).blobs["model"]
            self.owner.close()
            self.ledger.sizes["encrypted_model_bytes"] = len(self._model)
            self.call(self.server, "load_model", model=self._model)

    def revive(self) -> None:
        """Starts anew what has died since `open`: the server with the keys and model that it had; the client, with whom its
        secret key is gone, with new keys, and so both."""
        if not self.client.alive:
            self.client.close()
            self.server.close()
            self.open()
        elif not self.server.alive:
            self.server.close()
            self.server = self.start("server")
            self.server.call("load", artifact=self.artifacts["server"])
            self.server.call("load_keys", **self.keys)
            if self._model:
                self.server.call("load_model", model=self._model)

    # -- what happens in every request -----------------------------------------------------------------------------

    def ask(self, images: np.ndarray, phase: Phase = "sample") -> np.ndarray:
        """What `Client.encrypt` takes → what `Client.decrypt` returns: one round trip, or as many as the owner reported."""
        upload = self.request(images, phase)
        download = self.response(upload, phase)
        sizes = {"request_bytes": len(upload), "response_bytes": len(download)}
        for number in range(1, self.report.rounds):
            upload = self.refresh(download, phase, number)
            download = self.response(upload, phase, again=True)
            sizes["request_bytes"] += len(upload)
            sizes["response_bytes"] += len(download)
        result = self.logits(download, phase, again=self.report.rounds > 1)
        self.ledger.sizes |= sizes
        expected = self.work.result_shape(len(images))
        shape = result.shape[1:] if isinstance(self.work, TrainingWork) else result.shape
        if shape != expected or result.dtype.kind not in "fiu":
            raise TrialError(
                "wrong", f"the client decrypted {result.dtype} {result.shape}, not real numbers {expected}"
            )
        return result

    def request(self, images: np.ndarray, phase: Phase = "sample", client: Party | None = None) -> bytes:
        client, data = client or self.client, wire.array_to_bytes(images)
        if self.work.encoder is not None:
            data = self.call(client, "encode", phase=phase, images=data).blobs["latents"]
        self.call(client, "encrypt", phase=phase, images=data)
        return self.call(client, "serialise", phase=phase).blobs["message"]

    def response(self, request: bytes, phase: Phase = "sample", again: bool = False) -> bytes:
        self.call(self.server, "deserialise", phase=phase, again=again, message=request)
        self.call(self.server, "infer", phase=phase, again=again)
        return self.call(self.server, "serialise", phase=phase, again=again).blobs["message"]

    def refresh(self, response: bytes, phase: Phase, number: int) -> bytes:
        """The request of a further round, from the response of the one before; number: of rounds before it."""
        again = number > 1
        self.call(self.client, "deserialise", phase=phase, again=again, message=response)
        self.call(self.client, "refresh", phase=phase, again=again)
        return self.call(self.client, "serialise", phase=phase, again=True).blobs["message"]

    def logits(
        self, response: bytes, phase: Phase = "sample", client: Party | None = None, again: bool = False
    ) -> np.ndarray:
        client = client or self.client
        self.call(client, "deserialise", phase=phase, again=again, message=response)
        return wire.array_from_bytes(self.call(client, "decrypt", phase=phase).blobs["logits"])


def _require_security(backend: BackendInfo, report: OwnerReport) -> None:
    """A backend refuses insecure parameters itself; this holds for one that does not, too."""
    bits = (report.security or {}).get("bits")
    if backend.scheme != "clear" and not (isinstance(bits, int) and bits >= MINIMUM_SECURITY_BITS):
        stated = "no level of security is stated" if bits is None else f"the stated level of security is {bits} bits"
        raise TrialError("insecure", f"{stated}; {MINIMUM_SECURITY_BITS} bits are required")
