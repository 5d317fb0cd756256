"""Processes that stay, each a rank of torch.distributed over gloo, to run many cases in.

A start of torch costs seconds, so the processes are forked from a server that has imported it once
and serve a whole session of tests. The first two of four are a group of their own.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

SIZES = (2, 4)
_CONTEXT = multiprocessing.get_context("forkserver")
_PRELOADED = ["torch.distributed", "torch.nn.parallel", "r2kd_ext"]


class RankFailure(AssertionError):
    """What the ranks raised, by rank: the exception's type, its message, its traceback."""

    def __init__(self, errors: dict[int, tuple[str, str, str]]) -> None:
        super().__init__(
            "\n".join(f"rank {rank}: {trace}" for rank, (_, _, trace) in errors.items())
        )
        self.errors = errors


def join(store: str, rank: int, size: int, timeout: float) -> None:
    """Make this process a rank; `store` is a file that does not exist yet."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # not every machine can resolve its own name
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=timeout),
    )


def _serve(connection: Any, store: str, rank: int) -> None:
    import torch.distributed as dist

    join(store, rank, max(SIZES), 60)
    groups = {size: dist.new_group(list(range(size))) for size in SIZES}
    while True:
        try:
            function, size, arguments = pickle.loads(connection.recv_bytes())
        except EOFError:
            return
        try:
            answer = (True, function(groups[size], *arguments))
        except BaseException as error:
            answer = (False, (type(error).__name__, str(error), traceback.format_exc()))
        connection.send_bytes(pickle.dumps(answer))


class Ranks:
    """Four ranks that wait for work."""

    def __init__(self) -> None:
        _CONTEXT.set_forkserver_preload(_PRELOADED)
        self._folder = tempfile.TemporaryDirectory()
        store = str(Path(self._folder.name, "store"))
        self._connections, self._processes = [], []
        for rank in range(max(SIZES)):
            mine, theirs = _CONTEXT.Pipe()
            process = _CONTEXT.Process(target=_serve, args=(theirs, store, rank), daemon=True)
            process.start()
            theirs.close()
            self._connections.append(mine)
            self._processes.append(process)

    def run(self, size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """function(group, *arguments) on the first `size` ranks; its results by rank.

        Raises RankFailure where a rank raises. `function` is one of a module; it finds out its rank
        from the group.
        """
        message = pickle.dumps((function, size, arguments))
        for connection in self._connections[:size]:
            connection.send_bytes(message)
        answers = [pickle.loads(c.recv_bytes()) for c in self._connections[:size]]
        errors = {rank: answer for rank, (well, answer) in enumerate(answers) if not well}
        if errors:
            raise RankFailure(errors)
        return [answer for _, answer in answers]

    def close(self) -> None:
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.join(10)
            process.kill()
        self._folder.cleanup()


def _serve_once(connection: Any, store: str, rank: int, size: int, work: Any) -> None:
    function, timeout, arguments = work
    join(store, rank, size, timeout)
    try:
        answer = (True, function(rank, *arguments))
    except BaseException as error:
        answer = (False, (type(error).__name__, str(error), traceback.format_exc()))
    connection.send_bytes(pickle.dumps(answer))
    os._exit(0)  # torch.distributed would wait for ranks that are gone


def run_once(
    size: int, timeout: float, function: Callable[..., Any], arguments: Sequence[Any] = ()
) -> list[tuple[bool, Any]]:
    """function(rank, *arguments) in fresh processes that may break each other's group.

    For each rank: whether it returned, and what, or its exception's type, message and traceback.
    """
    _CONTEXT.set_forkserver_preload(_PRELOADED)
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder, "store"))
        work = (function, timeout, tuple(arguments))
        connections, processes = [], []
        for rank in range(size):
            mine, theirs = _CONTEXT.Pipe()
            process = _CONTEXT.Process(target=_serve_once, args=(theirs, store, rank, size, work))
            process.start()
            theirs.close()
            connections.append(mine)
            processes.append(process)
        answers: list[tuple[bool, Any]] = []
        for connection in connections:
            try:
                waits = connection.poll(60)
                answer = (
                    pickle.loads(connection.recv_bytes()) if waits else (False, ("hang", "", ""))
                )
            except EOFError:
                answer = (False, ("gone", "", ""))
            answers.append(answer)
        for process in processes:
            process.kill()
            process.join()
        return answers
