"""The file of a checkpoint: a line of JSON, the arrays as .npy one after another, and the sha256 of both in hex."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]
CHECKPOINT_FORMAT = 3
SHA256_HEX_LENGTH = 64
READ_CHUNK_BYTES = 1 << 20


class CheckpointFormatError(RuntimeError):
    """A checkpoint of another version of this program."""

    exit_code = 3


class Checkpoint(NamedTuple):
    """The state of a run after the iteration `step`."""

    step: int
    arrays: Arrays
    state: dict[str, Any]


class _HashingWriter:
    """The write side of a file that hashes the bytes on the way, so that none is kept or read twice."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self._file.write(data)


def write_checkpoint(file: BinaryIO, checkpoint: Checkpoint) -> None:
    """Write a checkpoint to an empty file; TypeError for a state that JSON does not give back unchanged."""
    step, arrays, state = checkpoint
    head = {"format": CHECKPOINT_FORMAT, "step": step, "state": state, "arrays": [*arrays]}
    line = json.dumps(head)
    if json.loads(line) != head:
        raise TypeError("the state of a checkpoint must be made of what JSON returns unchanged")
    out = _HashingWriter(file)
    out.write(line.encode() + b"\n")
    for array in arrays.values():
        np.lib.format.write_array(out, np.asarray(array), allow_pickle=False)
    file.write(out.sha256.hexdigest().encode())
    file.flush()


def is_intact(file: BinaryIO) -> bool:
    """Whether the file ends in the hash of the bytes before; leaves the file at its start."""
    left = file.seek(0, os.SEEK_END) - SHA256_HEX_LENGTH
    file.seek(0)
    if hasattr(os, "posix_fadvise"):  # not on Windows and macOS: what was synced is read from the disk, not from memory
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    sha256 = hashlib.sha256()
    while left > 0 and (block := file.read(min(READ_CHUNK_BYTES, left))):
        sha256.update(block)
        left -= len(block)
    is_intact = file.read() == sha256.hexdigest().encode()
    file.seek(0)
    return is_intact


def read_header(file: BinaryIO) -> dict[str, Any]:
    """The first line of a checkpoint; CheckpointFormatError for one of another version."""
    head: dict[str, Any] = json.loads(file.readline())
    if head["format"] != CHECKPOINT_FORMAT:
        raise CheckpointFormatError(
            f"{file.name}: a checkpoint of format {head['format']}, this program reads {CHECKPOINT_FORMAT}: "
            "go on with the version that wrote it, or start a new run without --resume"
        )
    return head


def read_checkpoint(file: BinaryIO) -> Checkpoint:
    """The checkpoint in an intact file that stands at its start."""
    head = read_header(file)
    arrays = {name: np.lib.format.read_array(file, allow_pickle=False) for name in head["arrays"]}
    return Checkpoint(head["step"], arrays, head["state"])
