"""Ctrl-C between the steps of training."""

from __future__ import annotations

import signal

import pytest

from r2kd_ext.train.interrupt import ctrl_c_between_steps, stop_if_asked


def test_the_first_waits_and_the_second_does_not() -> None:
    before = signal.getsignal(signal.SIGINT)
    with ctrl_c_between_steps():
        stop_if_asked()
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            stop_if_asked()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    stop_if_asked()


def test_a_request_does_not_outlive_its_run() -> None:
    with ctrl_c_between_steps():
        signal.raise_signal(signal.SIGINT)
    with ctrl_c_between_steps():
        stop_if_asked()


def test_a_process_that_ignores_it_goes_on() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with ctrl_c_between_steps():
            signal.raise_signal(signal.SIGINT)
            stop_if_asked()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
