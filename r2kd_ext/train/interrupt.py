"""Signals that take effect between two steps of training.

Python raises KeyboardInterrupt wherever it happens to be: in a destructor or a callback of a
library, where it is printed and lost, or in the middle of writing a file. SIGTERM ends the process
at once.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType

_asked: list[int] = []  # signals that came, in order


@contextmanager
def _wait(*numbers: int) -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in numbers}
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and number in _asked:
            raise KeyboardInterrupt
        _asked.append(number)

    _asked.clear()
    taken = [number for number in numbers if before[number] is not signal.SIG_IGN]
    for number in taken:
        signal.signal(number, ask)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, before[number])
        _asked.clear()


def ctrl_c_between_steps() -> AbstractContextManager[None]:
    """Let the first Ctrl-C wait for `stop_if_asked`; a second one interrupts at once.

    Does nothing outside of the main thread, which alone receives signals, and where the process
    ignores Ctrl-C, as shells have it for jobs in the background.
    """
    return _wait(signal.SIGINT)


def signals_between_steps() -> AbstractContextManager[None]:
    """As `ctrl_c_between_steps`, for `asked`, and with SIGTERM, every one of which waits."""
    return _wait(signal.SIGINT, signal.SIGTERM)


def asked() -> int | None:
    """The first signal that came since one of the above was entered; None where none did."""
    return _asked[0] if _asked else None


def stop_if_asked() -> None:
    """Raise KeyboardInterrupt if Ctrl-C came since `ctrl_c_between_steps` was entered."""
    if signal.SIGINT in _asked:
        raise KeyboardInterrupt


def ignore_signals(worker: int) -> None:
    """Leave both signals to the training process, which a worker that loads images serves."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
