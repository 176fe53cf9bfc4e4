"""One role of one backend in a process of its own: ``python -m backends.party FD ROLE MODULE THREADS MEMORY``.

It executes the calls that the harness sends over the socket FD, one at a time, and answers each with what it cost:
wall time, CPU time of all threads and children, and the resident memory at the peak of the call and kept after it.
Objects (ciphertexts) stay here between calls; only bytes go out. It needs the standard library and NumPy beside the
backend's own library.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import os
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from backends import api, wire
from models.encoder import Encoder
from models.network import Network

PR_SET_PDEATHSIG = 1


class Role:
    """Holds the backend's object and whatever the last call produced."""

    def __init__(self, role: str, module: str) -> None:
        self._target = getattr(importlib.import_module(module), role.capitalize())()
        self._value: Any = None
        self._encoder: Encoder | None = None

    def call(self, name: str, header: dict[str, Any], blobs: dict[str, bytes]) -> Callable[[], wire.Message]:
        """The prepared call, so that only the backend's own work is timed; it returns a closure for the reply.

        Raises MessageError for an unknown operation or one whose arguments are missing or malformed.
        """
        if name not in OPERATIONS:
            raise api.MessageError(f"unknown operation {name!r}")
        try:
            return getattr(self, f"_{name}")(header, blobs)
        except (LookupError, TypeError, ValueError) as error:
            raise api.MessageError(f"malformed arguments of {name}: {error or type(error).__name__}") from error

    # Each method unpacks its arguments first and returns the function to be timed. What that returns builds the reply.

    def _prepare(self, header: dict[str, Any], blobs: dict[str, bytes]) -> Callable[[], Any]:
        job = self._job(header, blobs)
        return lambda: self._prepared(self._target.prepare(job))

    def _encrypt_model(self, header: dict[str, Any], blobs: dict[str, bytes]) -> Callable[[], Any]:
        return lambda: wire.Message({}, {"model": self._target.encrypt_model(blobs["public"])})

    def _explain(self, header: dict[str, Any], blobs: dict[str, bytes]) -> Callable[[], Any]:
        job = self._job(header, blobs)
        if not hasattr(self._target, "explain"):
            raise api.BackendError("this backend has no plan to explain")
        return lambda: wire.Message({"explanation": self._target.explain(job)})

    @staticmethod
    def _job(header: dict[str, Any], blobs: dict[str, bytes]) -> api.Job | api.TrainingJob:
        if "training" in header:
            return api.TrainingJob(api.Training(**header["training"]), **header["job"])
        network, calibration = Network.from_bytes(blobs["network"]), wire.array_from_bytes(blobs["calibration"])
        return api.Job(network, calibration=calibration, **header["job"])

    @staticmethod
    def _prepared(p: api.Prepared) -> wire.Message:
        names = ("batch", "rounds", "parameters", "security", "operations", "notes")
        return wire.Message({n: getattr(p, n) for n in names}, {"client": p.client, "server": p.server})

    def _load(self, header: dict[str, Any], blobs: dict[str, bytes]) -> Callable[[], Any]:
        artifact = blobs["artifact"]
        return lambda: self._done(self._target.load(artifact))

    def _keygen(self, header: dict[str, Any], blobs: dict[str, bytes]) -> Callable[[], Any]:
        seed = header["seed"]
        return lambda: wire.Message({}, self._target.keygen(seed))

    def _load_keys(self, header: dict[str, Any], blobs: dict[str, bytes]) -> Callable[[], Any]:
        return lambda: self._done(self._target.load_keys(blobs))

    def _load_model(self, header: dict[str, Any], blobs: dict[str, bytes]) -> Callable[[], Any]:
        model = blobs["model"]
        return lambda: self._done(self._target.load_model(model))

    # The encoder of a model that reads latents is the client's own: the backend gets latents in the place of images.

    def _load_encoder(self, header: dict[str, Any], blobs: dict[str, bytes]) -> Callable[[], Any]:
        quantised, data = header["quantised"], blobs["encoder"]

        def load() -> wire.Message:
            self._encoder = Encoder(Network.from_bytes(data), quantised)
            return wire.Message()

        return load

    def _encode(self, header: dict[str, Any], blobs: dict[str, bytes]) -> Callable[[], Any]:
        if (encoder := self._encoder) is None:
            raise api.MessageError("called out of order: there is no encoder yet")
        self._value, images = None, wire.array_from_bytes(blobs["images"])
        return lambda: wire.Message({}, {"latents": wire.array_to_bytes(encoder(images))})

    def _encrypt(self, header: dict[str, Any], blobs: dict[str, bytes]) -> Callable[[], Any]:
        self._value, images = None, wire.array_from_bytes(blobs["images"])  # what is no longer needed is released here
        return lambda: self._keep(self._target.encrypt(images))

    def _refresh(self, header: dict[str, Any], blobs: dict[str, bytes]) -> Callable[[], Any]:
        value = self._last()
        return lambda: self._keep(self._target.refresh(value))

    def _infer(self, header: dict[str, Any], blobs: dict[str, bytes]) -> Callable[[], Any]:
        value = self._last()
        return lambda: self._keep(self._target.infer(value))

    def _serialise(self, header: dict[str, Any], blobs: dict[str, bytes]) -> Callable[[], Any]:
        value = self._last()
        return lambda: wire.Message({}, {"message": self._target.serialise(value)})

    def _deserialise(self, header: dict[str, Any], blobs: dict[str, bytes]) -> Callable[[], Any]:
        self._value, message = None, blobs["message"]
        return lambda: self._keep(self._target.deserialise(message))

    def _decrypt(self, header: dict[str, Any], blobs: dict[str, bytes]) -> Callable[[], Any]:
        value = self._last()
        return lambda: wire.Message({}, {"logits": wire.array_to_bytes(self._target.decrypt(value))})

    def _last(self) -> Any:
        if self._value is None:
            raise api.MessageError("called out of order: there are no ciphertexts yet")
        return self._value

    def _keep(self, value: Any) -> wire.Message:
        self._value = value
        return wire.Message()

    @staticmethod
    def _done(_: None) -> wire.Message:
        return wire.Message()


OPERATIONS = (
    "prepare",
    "explain",
    "load",
    "keygen",
    "load_keys",
    "encrypt_model",
    "load_model",
    "load_encoder",
    "encode",
    "encrypt",
    "refresh",
    "infer",
    "serialise",
    "deserialise",
    "decrypt",
)


def measured(call: Callable[[], wire.Message], first: bool = False) -> wire.Message:
    """The reply of `call` with ``wall_s``, ``cpu_s`` and ``peak_rss_bytes`` in its header.

    peak_rss_is_of: ``operation`` or, where the kernel cannot reset its peak, the ``process`` so far.
    first: also ``kept_rss_bytes``, resident memory after the call less that before it. Memory that is free goes back to the
    system both times, or the call would seem to need nothing: hence not for calls whose time is a sample.
    """
    before = _resident_bytes() if first else 0
    peak_rss_is_of = "operation" if _reset_peak() else "process"
    children, cpu, wall = _children_cpu_s(), time.process_time(), time.perf_counter_ns()
    reply = call()
    wall_s, cpu_s = (time.perf_counter_ns() - wall) / 1e9, time.process_time() - cpu
    cost = {
        "wall_s": wall_s,
        "cpu_s": cpu_s + _children_cpu_s() - children,
        "peak_rss_is_of": peak_rss_is_of,
        "peak_rss_bytes": _memory_bytes("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    if first:
        cost["kept_rss_bytes"] = _resident_bytes() - before
    return wire.Message(reply.header | cost, reply.blobs)


def _resident_bytes() -> int:
    """Once everything that is free was returned to the system."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library than GNU's
        ctypes.CDLL(None).malloc_trim(0)
    return _memory_bytes("VmRSS")


def _children_cpu_s() -> float:
    """Of those that have ended and of those that are alive."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime + sum(map(_child_cpu_s, _children()))


def _child_cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # user and system, see proc(5)


def _children() -> list[int]:
    try:
        return [int(pid) for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()]
    except OSError:
        return []


def _reset_peak() -> bool:
    try:
        for pid in ("self", *_children()):
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # see proc(5)
    except OSError:
        return False
    return True


def _memory_bytes(name: str) -> int:
    """``VmHWM`` (peak) or ``VmRSS`` of this process and its children, see proc(5); 0 where the kernel does not tell.

    Pages that a fork shares count for each.
    """
    try:
        statuses = [Path(f"/proc/{pid}/status").read_text() for pid in ("self", *_children())]
        lines = [next(line for line in status.splitlines() if line.startswith(name)) for status in statuses]
        return sum(int(line.split()[1]) * 1024 for line in lines)
    except (OSError, StopIteration):
        return 0


def _failure(error: BaseException) -> wire.Message:
    kinds = (api.InsecureError, api.MessageError, api.BackendError, MemoryError)
    kind = next((k.__name__ for k in kinds if isinstance(error, k)), type(error).__name__)
    if not isinstance(error, api.BackendError):
        with contextlib.suppress(OSError):  # the log is on a full disk
            traceback.print_exc()
    return wire.Message({"error": kind, "reason": str(error) or kind})


def _next(connection: socket.socket) -> wire.Message | None:
    """None at the end: the harness has closed, or sent what is no message, so that the next one cannot be found."""
    try:
        return wire.receive(connection)
    except wire.WireError as error:
        with contextlib.suppress(OSError):
            wire.send(connection, _failure(api.MessageError(str(error))))
        return None


def _limit_memory(limit_bytes: int) -> None:
    """Of the address space. Raises MemoryError if the process has more already."""
    np.ones((256, 256)) @ np.ones(
        (256, 256)
    )  # OpenBLAS takes its buffers at a first product; refused, it asks for ever
    if (size := _memory_bytes("VmSize")) >= limit_bytes:
        raise MemoryError(
            f"Python and the backend's library alone take {size / 2**30:.2f} GiB of address space; raise --memory-limit"
        )
    resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))


def main() -> None:
    role_name, module = sys.argv[2:4]
    fd, threads, memory_limit_bytes = map(int, (sys.argv[1], *sys.argv[4:]))
    with contextlib.suppress(OSError, AttributeError):  # no orphan survives the harness (Linux only)
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    connection = socket.socket(fileno=fd)
    try:
        role = Role(role_name, module)
        if memory_limit_bytes:
            _limit_memory(memory_limit_bytes)
    except Exception as error:  # whatever an import raises belongs into the record
        wire.send(connection, _failure(error))
        return
    wire.send(connection, wire.Message({"ready": os.getpid()}))
    called = set[str]()
    while request := _next(connection):
        try:
            operation = request.header.pop("operation", None)
            call = role.call(operation, request.header, request.blobs)
            reply = wire.encode(measured(call, first=operation not in called))
            called.add(operation)
        except Exception as error:  # also of `encode`: a report that is no plain JSON, a message that is too long
            reply = wire.encode(_failure(error))
        wire.send(connection, reply)


if __name__ == "__main__":
    main()
