"""Files of fits: written as a whole or not at all, and refused where they are not what was written."""

from __future__ import annotations

import json
import os
import random
import resource
import struct
import tracemalloc
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from jkosampler import checkpoint
from jkosampler._whole_files import file_to_be
from jkosampler.errors import ArgumentError, CheckpointError

CONTENT = {"a": [1, 2.5, None, "x"]}
TENSORS = {"0": torch.arange(6.0).reshape(2, 3), "1": torch.tensor([True, False]), "2": torch.tensor(3)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "fit.safetensors"
    checkpoint.write(path, CONTENT, TENSORS)
    return path


def test_what_is_written_is_read(path: Path) -> None:
    content, tensors = checkpoint.read(path)
    assert content == CONTENT
    assert all(torch.equal(tensors[name], x) and tensors[name].dtype == x.dtype for name, x in TENSORS.items())
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]  # and nothing else is left behind


class TestFailures:
    def test_a_full_disk_leaves_the_last_good_file(self, path: Path) -> None:
        before = path.read_bytes()
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        try:
            with pytest.raises(CheckpointError, match=r"can't be written: .*unharmed"):
                checkpoint.write(path, CONTENT, {"0": torch.zeros(100_000)})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert path.read_bytes() == before
        assert [entry.name for entry in path.parent.iterdir()] == [path.name]

    def test_a_folder_that_takes_no_files(self) -> None:
        if not Path("/proc/self").is_dir():
            pytest.skip("needs /proc")
        with pytest.raises(CheckpointError, match="can't be written"):
            checkpoint.write(Path("/proc/fit.safetensors"), CONTENT, TENSORS)

    @pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the rights of folders do not bind root")
    def test_a_folder_without_the_right_to_write(self, path: Path) -> None:
        path.parent.chmod(0o555)
        try:
            with pytest.raises(CheckpointError, match="can't be written: Permission denied"):
                checkpoint.write(path, {}, {})
        finally:
            path.parent.chmod(0o755)
        assert checkpoint.read(path)[0] == CONTENT

    def test_an_error_in_the_midst_of_writing(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(descriptor: int) -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(CheckpointError, match="Input/output error"):
            checkpoint.write(path, {}, {})
        monkeypatch.undo()
        assert checkpoint.read(path)[0] == CONTENT

    def test_two_writers(self, path: Path) -> None:
        lock = checkpoint.locked(path)
        with pytest.raises(CheckpointError, match="another fit is writing"):
            checkpoint.locked(path)
        lock.release()
        checkpoint.locked(path).release()


class TestPaths:
    @pytest.mark.parametrize("path", [3, None, "", b"x"])
    def test_no_path(self, path: object) -> None:
        with pytest.raises(ArgumentError, match="checkpoint must be the path of a file"):
            file_to_be(path, "checkpoint")

    def test_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ArgumentError, match="is a folder"):
            file_to_be(tmp_path, "checkpoint")
        with pytest.raises(ArgumentError, match="is not there"):
            file_to_be(tmp_path / "no" / "file", "checkpoint")

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
    def test_files_that_are_none(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
            with pytest.raises(CheckpointError, match="no regular file"):
                checkpoint.read(path)
        with pytest.raises(CheckpointError, match="is not there"):
            checkpoint.read(tmp_path / "nothing")


def header(declared: dict[str, object], n: int | None = None) -> bytes:
    text = json.dumps(declared).encode()
    return struct.pack("<Q", len(text) if n is None else n) + text


class TestDamage:
    def test_files_of_others(self, path: Path) -> None:
        path.write_bytes(save({"0": torch.zeros(3)}))
        with pytest.raises(CheckpointError, match="is not a file of jkosampler"):
            checkpoint.read(path)
        for blob in (b"", b"PK\x03\x04" + bytes(100), b"\x80\x05K\x01.", b"{}", bytes(7)):
            path.write_bytes(blob)
            with pytest.raises(CheckpointError):
                checkpoint.read(path)

    def test_a_later_version(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(checkpoint, "SCHEMA", checkpoint.SCHEMA + 1)
        checkpoint.write(path, CONTENT, TENSORS)
        monkeypatch.undo()
        with pytest.raises(CheckpointError, match="has schema 2, this version reads 1"):
            checkpoint.read(path)

    def test_enormous_sizes_that_are_only_declared(self, path: Path) -> None:
        huge = {"0": {"dtype": "F64", "shape": [2**40, 2**20], "data_offsets": [0, 2**63]}}
        blobs = [header(huge) + bytes(64), header(huge, n=2**62), header({}, n=2**31), header(huge, n=99_000_000)]
        tracemalloc.start()
        for blob in blobs:
            path.write_bytes(blob)
            with pytest.raises(CheckpointError):
                checkpoint.read(path)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
        tracemalloc.stop()

    def test_no_bit_can_be_flipped(self, path: Path) -> None:
        good, rng = path.read_bytes(), random.Random(0)
        for _ in range(200):
            bad = bytearray(good)
            bit = rng.randrange(8 * len(bad))
            bad[bit // 8] ^= 1 << bit % 8
            path.write_bytes(bad)
            try:
                content, tensors = checkpoint.read(path)
            except CheckpointError:
                continue
            # only what says nothing, such as the blanks that fill up a header
            assert content == CONTENT
            assert all(torch.equal(tensors[name], x) for name, x in TENSORS.items())

    def test_no_end_can_be_missing(self, path: Path) -> None:
        good = path.read_bytes()
        for n in range(0, len(good), 7):
            path.write_bytes(good[:n])
            with pytest.raises(CheckpointError):
                checkpoint.read(path)
