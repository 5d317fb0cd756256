"""Checkpoints of the trainer: whole or absent, and refused where they are not what was written."""

from __future__ import annotations

import errno
import json
import os
import pickle
import random
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("safetensors", reason="of the extra train")

from r2kd_ext.train import checkpoint, files
from r2kd_ext.train.checkpoint import Checkpoint, Checkpoints
from r2kd_ext.train.files import FileProblem
from r2kd_ext.train.randomness import derive, global_state, seed_globally, set_global_state


def some(seed: int = 1) -> Checkpoint:
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        "weight": torch.randn(4, 3, generator=generator),
        "transposed": torch.randn(5, 7, generator=generator).T,
        "half": torch.randn(6, generator=generator).to(torch.bfloat16),
        "steps": torch.tensor(1234567890123),
        "bytes": torch.randint(256, (50,), generator=generator).to(torch.uint8),
        "none": torch.empty(0, 2),
    }
    tensors["tied"] = tensors["weight"]
    return Checkpoint(tensors, {"step": 7, "loss": 0.1 + 0.2, "name": "ü", "list": [1, None]})


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, some())
    found = checkpoint.load(path)
    assert found.values == some().values
    assert found.tensors.keys() == some().tensors.keys()
    for name, tensor in some().tensors.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert torch.equal(found.tensors[name], tensor)


def test_every_truncation_and_flipped_bit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, some())
    raw = path.read_bytes()
    rng = random.Random(3)
    for length in [0, 1, 8, 9, len(raw) - 1, *rng.choices(range(len(raw)), k=30)]:
        path.write_bytes(raw[:length])
        with pytest.raises(FileProblem, match=r"a\.safetensors"):
            checkpoint.load(path)
    for place in [*range(0, len(raw), 7), len(raw) - 1]:
        changed = bytearray(raw)
        changed[place] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        try:
            found = checkpoint.load(path)
        except FileProblem:
            continue
        # Some bits mean nothing, as the case of a hexadecimal digit in JSON.
        assert found.values == some().values
        assert all(torch.equal(found.tensors[n], t) for n, t in some().tensors.items())


def test_exchanged_values_and_names_are_refused(tmp_path: Path) -> None:
    """What is still a file of the right form, with another content."""
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, some())
    raw = path.read_bytes()
    for old, new in (
        (b'\\"step\\": 7', b'\\"step\\": 8'),
        (b'"weight"', b'"wright"'),
        (b"[4,3]", b"[3,4]"),
    ):
        assert raw.count(old) >= 1
        path.write_bytes(raw.replace(old, new, 1))
        with pytest.raises(FileProblem, match="damaged"):
            checkpoint.load(path)


_ran: list[str] = []


class _Spy:
    def __reduce__(self) -> tuple[Any, ...]:
        return (_ran.append, ("ran",))


def test_no_code_of_a_file_runs(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(pickle.dumps(_Spy()))
    with pytest.raises(FileProblem):
        checkpoint.load(path)
    torch.save({"x": _Spy()}, path)
    with pytest.raises(FileProblem):
        checkpoint.load(path)
    assert not _ran


def test_the_newest_stay_and_the_one_before_is_offered(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path / "checkpoints", keep=3)
    assert store.load_newest() is None
    for step in (1, 2, 10, 11):
        store.save(step, some(step))
    assert [p.name for p in store.paths()] == [f"step-{n:09d}.safetensors" for n in (11, 10, 2)]
    (tmp_path / "checkpoints" / ".step-000000012.safetensors.5.tmp").write_bytes(b"half")
    newest = store.load_newest()
    assert newest is not None
    assert torch.equal(newest.tensors["weight"], some(11).tensors["weight"])
    assert not list(store.folder.glob(".*"))

    newest_path, before, oldest = store.paths()
    newest_path.write_bytes(newest_path.read_bytes()[:-3])
    with pytest.raises(FileProblem) as caught:
        store.load_newest()
    assert str(newest_path) in str(caught.value)
    assert f"The one before, {before}, is whole: delete {newest_path}" in str(caught.value)
    before.write_bytes(b"")
    with pytest.raises(FileProblem, match=rf"before, {oldest}, is whole: delete .* and "):
        store.load_newest()
    oldest.write_bytes(b"")
    with pytest.raises(FileProblem, match="No other checkpoint"):
        store.load_newest()
    with pytest.raises(ValueError, match="keep must be at least 2, got 1"):
        Checkpoints(tmp_path, 1)


FULL = """
import resource, signal, sys
from pathlib import Path
import torch
from r2kd_ext.train.checkpoint import Checkpoint, Checkpoints
from r2kd_ext.train.files import FileProblem
store = Checkpoints(Path(sys.argv[1]), 2)
store.save(1, Checkpoint({"a": torch.arange(1000)}, {}))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
try:
    store.save(2, Checkpoint({"a": torch.arange(2000)}, {}))
except FileProblem as error:
    print(error)
"""


def test_a_limit_of_the_file_system(tmp_path: Path) -> None:
    """The kernel stops the write after 5000 bytes: the error says it, the file before stays."""
    assert hasattr(resource, "RLIMIT_FSIZE")
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    good = tmp_path / "step-000000001.safetensors"
    assert "cannot write" in done.stdout
    assert "File too large" in done.stdout
    assert f"The last good checkpoint is {good}" in done.stdout
    assert os.listdir(tmp_path) == [good.name]
    assert torch.equal(checkpoint.load(good).tensors["a"], torch.arange(1000))


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """File systems may say only when they flush that there is no room."""
    store = Checkpoints(tmp_path, 2)
    for step in (1, 2):
        store.save(step, some(step))

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(files.os, call, full)
        with pytest.raises(FileProblem, match=r"No space left on device\..*last good"):
            store.save(3, some(3))
    assert [p.name for p in store.paths()] == [f"step-{n:09d}.safetensors" for n in (2, 1)]
    newest = store.load_newest()
    assert newest is not None
    assert torch.equal(newest.tensors["half"], some(2).tensors["half"])


def test_values_that_json_lacks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        checkpoint.save(tmp_path / "a", Checkpoint({}, {"loss": float("nan")}))
    assert not list(tmp_path.iterdir())


def test_global_generators_go_on_where_they_were(tmp_path: Path) -> None:
    def draw() -> list[float]:
        python = [random.random(), random.gauss(0, 1)]
        return [*python, np.random.rand(), np.random.randn(), *torch.rand(3).tolist()]

    before = global_state()
    seed_globally(5)
    random.gauss(0, 1)
    np.random.randn()
    checkpoint.save(tmp_path / "a", Checkpoint(global_state(), {}))
    expected = draw()
    seed_globally(6)
    assert draw() != expected
    set_global_state(checkpoint.load(tmp_path / "a").tensors)
    assert draw() == expected
    set_global_state(before)


def test_derived_seeds_are_far_apart() -> None:
    seeds = [
        derive(s, p, *n) for s in (0, 1) for p in ("a", "b") for n in ((), (1,), (1, 1), (11,))
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**62 for seed in seeds)
    assert derive(0, "order", 3) == derive(0, "order", 3)
    assert json.loads(json.dumps(seeds)) == seeds
