"""What ends a run from outside becomes an exception, so that parties are ended and what is finished is reported."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Iterator
from types import FrameType


class Stopped(KeyboardInterrupt):
    """SIGTERM or SIGHUP; a Ctrl-C is a KeyboardInterrupt of its own."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def in_words(end: KeyboardInterrupt) -> str:
    return f"ended by {signal.Signals(end.number).name}" if isinstance(end, Stopped) else "interrupted"


def exit_code(end: KeyboardInterrupt) -> int:
    """As of a process that the signal killed."""
    return 128 + (end.number if isinstance(end, Stopped) else signal.SIGINT)


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM and SIGHUP raise `Stopped` in the main thread; one that is ignored, as under nohup, stays so."""

    def stop(number: int, frame: FrameType | None) -> None:
        _leave_lost_terminal()
        raise Stopped(number)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler is signal.SIG_DFL:
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave_lost_terminal() -> None:
    """Output goes nowhere once its terminal or the reader of its pipe is gone: writing there would be an error."""
    poll = select.poll()
    for stream in (1, 2):
        poll.register(stream, 0)
    with open(os.devnull, "wb") as nowhere:
        for stream, _ in poll.poll(0):
            os.dup2(nowhere.fileno(), stream)
