"""Ctrl-C that takes effect between two steps of training.

Python raises KeyboardInterrupt wherever it happens to be: in a destructor or a callback of a
library, where it is printed and lost, or in the middle of writing a file.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_asked = threading.Event()


@contextmanager
def ctrl_c_between_steps() -> Iterator[None]:
    """Let the first Ctrl-C wait for `stop_if_asked`; a second one interrupts at once.

    Does nothing outside of the main thread, which alone receives signals, and where the process
    ignores Ctrl-C, as shells have it for jobs in the background.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is signal.SIG_IGN:
        yield
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if _asked.is_set():
            raise KeyboardInterrupt
        _asked.set()

    _asked.clear()
    signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        _asked.clear()


def stop_if_asked() -> None:
    """Raise KeyboardInterrupt if Ctrl-C came since `ctrl_c_between_steps` was entered."""
    if _asked.is_set():
        raise KeyboardInterrupt
