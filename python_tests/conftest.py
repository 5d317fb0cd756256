"""Settings of the test run."""

from __future__ import annotations

import importlib
import inspect
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

try:
    from hypothesis import HealthCheck, settings
except ImportError:  # a GPU machine without a network; the tests for a GPU do without
    pass
else:
    # The suite gives the same answer on every run. To search further:
    # pytest --hypothesis-profile=search
    settings.register_profile(
        "fixed",
        derandomize=True,
        deadline=None,
        max_examples=60,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    settings.register_profile(
        "search", parent=settings.get_profile("fixed"), derandomize=False, max_examples=2000
    )
    settings.load_profile("fixed")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For many small layers, several threads wait for each other: on a busy machine for minutes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def uncompiled_benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Imports a script of benchmarks/ by name; what it compiles runs as it is."""
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    compiled = importlib.import_module("harness").compiled
    compiled.cache_clear()
    yield importlib.import_module
    compiled.cache_clear()


@pytest.fixture
def digits_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of the trainer take their images from memory; see train_runs.py."""
    import train_runs

    from r2kd_ext.train import engine

    monkeypatch.setattr(engine, "load", lambda config, *, seed: train_runs.digits())


@pytest.fixture
def config(tmp_path: Path) -> str:
    """A file with the configuration of a small run."""
    import train_runs

    path = tmp_path / "given.yaml"
    path.write_text(train_runs.CONFIG)
    return str(path)


@pytest.fixture(scope="session")
def ranks() -> Iterator[Any]:
    """Processes that are ranks of torch.distributed over gloo; see ranks.py."""
    from ranks import Ranks

    pool = Ranks()
    yield pool
    pool.close()


def pytest_configure(config: pytest.Config) -> None:
    """Take Ctrl-C as in the foreground: shells have jobs in the background ignore it, and with
    them all that they start, which would leave nothing of the tests of Ctrl-C."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that several workers end together.

    With R2KD_TEST_SHARD=1/3, the second of three shares; a test's cases stay together.
    tools/gpu_check.py runs sessions side by side, and has no package that would split them.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow") is not None}
    items.sort(key=lambda item: item.path not in slow)
    shard = os.environ.get("R2KD_TEST_SHARD")
    if not shard:
        return
    which, of = map(int, shard.split("/"))
    names = [item.name.partition("[")[0] for item in items]
    loads, share_of = [0] * of, {}
    for name, count in Counter(names).most_common():
        share_of[name] = loads.index(min(loads))
        loads[share_of[name]] += count
    kept = [item for item, name in zip(items, names, strict=True) if share_of[name] == which]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


def _remember_what_the_interpreter_patches() -> None:
    """Halves the time of Triton's interpreter.

    It goes through all members of triton.language at every call of a kernel's helper function, to
    find those that it replaces while the kernel runs. They are always the same.
    """
    from triton.language import core
    from triton.runtime import interpreter

    @cache
    def builtins_of(owner: Any) -> list[tuple[str, Any]]:
        return [(name, x) for name, x in inspect.getmembers(owner) if core.is_builtin(x)]

    def patch(owner: Any, builder: Any, scope: Any) -> None:
        for name, member in builtins_of(owner):
            interpreter._patch_attr(owner, name, member, builder, scope)

    interpreter._patch_builtin = patch


def _make_exponentials_inexact() -> None:
    """Gives the interpreter's 2^x the error of a GPU's, which the kernels have to bear.

    ex2.approx.f32 has a relative error of up to 2^-22 (PTX ISA). Here it depends on x alone, in no
    smooth way.
    """
    from triton.runtime import interpreter

    def inexact(x: Any) -> Any:
        exact = np.exp2(x)
        if x.dtype != np.float32:
            return exact
        error = np.sin(np.maximum(x, -999.0).astype(np.float64) * 1e9) * 2.0**-22
        return (exact.astype(np.float64) * (1 + error)).astype(np.float32)

    interpreter.InterpreterBuilder.create_exp2 = lambda self, arg: self.unary_op(arg, inexact)


def _reduce_exclusive_or_at_once() -> None:
    """tl.sort takes an exclusive or at every step; the interpreter goes from element to element."""
    from triton.language import standard
    from triton.runtime import interpreter

    original = interpreter.ReduceOps.generic_reduce

    def reduce(self: Any, inputs: tuple[Any, ...]) -> list[Any]:
        if self.combine_fn is not standard._xor_combine:
            return list(original(self, inputs))
        (x,) = inputs
        data = np.bitwise_xor.reduce(x.handle.data, axis=self.axis, keepdims=self.keep_dims)
        return [self.to_tensor(data, x.dtype)]

    interpreter.ReduceOps.generic_reduce = reduce


def _scan_by_doubling() -> None:
    """Scans in log2(n) steps over whole arrays, as a GPU does.

    The interpreter's own way, element after element, takes a third of a millisecond for each.
    """
    from triton.runtime import interpreter

    def scan(self: Any, inputs: tuple[Any, ...]) -> list[Any]:
        assert self.axis == 0
        arrays = [x.handle.data for x in inputs]
        kinds = [x.dtype for x in inputs]
        apart = 1
        while apart < len(arrays[0]):
            before = [np.roll(a, apart) for a in arrays]  # the first ones are discarded below
            joined = self.combine_fn.fn(*map(self.to_tensor, before + arrays, kinds * 2))
            joined = joined if isinstance(joined, tuple) else (joined,)
            arrays = [
                np.concatenate([a[:apart], x.handle.data[apart:]])
                for a, x in zip(arrays, joined, strict=True)
            ]
            apart *= 2
        return list(map(self.to_tensor, arrays, kinds))

    interpreter.ScanOps.generic_scan = scan


if os.environ.get("TRITON_INTERPRET"):
    _remember_what_the_interpreter_patches()
    _reduce_exclusive_or_at_once()
    _scan_by_doubling()
    _make_exponentials_inexact()
