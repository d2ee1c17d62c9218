"""
A replay buffer as segments: each checkpoint adds what is new since the last one, and shares the rest with it.

A row is one call of ``add()``. Arrays that a buffer writes row by row and never touches again (observations, actions) go into
a segment by row. All others are looked at in blocks of rows, and the blocks that changed go in: ends of episodes, which some
buffers set later, lengths of episodes, priorities. Of a buffer whose class is not known here, every array is looked at.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_sparse.buffers import DynamicNStepReplayBuffer
from sb3_sparse.checkpoint.names import CannotEncode
from sb3_sparse.checkpoint.plain import Decoder, Encoder, attributes_of
from sb3_sparse.checkpoint.store import Store, pack, unpack

#: Buffers that are known to leave these arrays alone once their row is written.
_KNOWN = (DictReplayBuffer, DynamicNStepReplayBuffer, HerReplayBuffer, NStepReplayBuffer, ReplayBuffer)
_WRITTEN_ONCE = ("observations", "next_observations", "actions", "mean_actions")
#: What the constructor of a buffer sets, or belongs to the model.
_NOT_STATE = frozenset({"_next_mean_actions", "action_space", "device", "env", "obs_shape", "observation_space", "step_bonus"})
#: Rows of a block.
_BLOCK = 4096
#: No file is larger than about this many bytes.
_LARGEST = 64 * 2**20


@dataclass(frozen=True)
class Segment:
    """
    A file with some rows.

    :param blob: Digest of the file.
    :param start: First row, as an index into the ring.
    :param n_rows: How many, from there on, around the ring if need be.
    :param arrays: Names of the arrays in the file, in order: ``"rows:<array>"``, or ``"block <number>:<array>"``.
    """

    blob: str
    start: int
    n_rows: int
    arrays: list[str]


def row_arrays(buffer: ReplayBuffer) -> dict[str, np.ndarray]:
    """
    List the arrays of a replay buffer that have rows.

    :param buffer: A replay buffer.
    :return: Its arrays with one entry for each row, by name; those of Dict observations as ``"observations/<key>"``.
    """
    found = {}
    for name, value in attributes_of(buffer).items():
        parts = {f"{name}/{key}": item for key, item in value.items()} if isinstance(value, dict) else {name: value}
        for part, array in parts.items():
            if isinstance(array, np.ndarray) and array.ndim > 0 and len(array) == buffer.buffer_size:
                found[part] = array
    if isinstance(buffer, HerReplayBuffer) and not buffer.copy_info_dict:
        found.pop("infos", None)
    return found


class ReplayRecorder:
    """
    Knows what of a replay buffer has been written.

    :param store: Where segments go.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.segments: list[Segment] = []
        self._buffer: ReplayBuffer | None = None
        self._pos = self._timesteps = 0
        #: Digest of every block that was looked at, by array; arrays that were written by row.
        self._blocks: dict[str, dict[int, bytes]] = {}
        self._by_row: set[str] = set()

    def follow(self, buffer: ReplayBuffer, segments: list[Segment], n_timesteps: int) -> None:
        """
        Take over a buffer that has just been read.

        :param buffer: The buffer.
        :param segments: Segments that hold all of it.
        :param n_timesteps: Environment steps so far.
        """
        self.segments = list(segments)
        by_row, scanned = _split(buffer)
        self._by_row = set(by_row)
        self._blocks = {name: dict(_digests(array, _n_scanned(buffer))) for name, array in scanned.items()}
        self._note(buffer, n_timesteps)

    def record(self, buffer: ReplayBuffer, n_timesteps: int, encoder: Encoder) -> dict[str, Any]:
        """
        Write what is new.

        :param buffer: The model's buffer.
        :param n_timesteps: Environment steps so far.
        :param encoder: Encodes what is no row.
        :return: The buffer as JSON, with its segments.
        :raises OSError: If it cannot be written; the next call writes it.
        :raises CannotEncode: If the buffer has an attribute that is no data.
        """
        by_row, scanned = _split(buffer)
        start, n_rows = self._new_rows(buffer, n_timesteps)
        if set(by_row) - self._by_row:
            # An array that is there for the first time holds older rows too
            start, n_rows = _all_rows(buffer)
        whole = n_rows == _n_valid(buffer)
        segments: list[Segment] = [] if whole else list(self.segments)
        blocks = {} if whole else {name: dict(known) for name, known in self._blocks.items()}
        for first, count in _chunks(by_row, start, n_rows, buffer.buffer_size):
            segments.append(self._write(_rows(buffer, by_row, first, count), first, count))
        for changed in _changed_blocks(scanned, blocks, _n_scanned(buffer)):
            segments.append(self._write(changed, 0, 0))
        segments = _needed(segments, _n_valid(buffer))
        state = self.plain_state(buffer, encoder)
        self.segments, self._blocks, self._by_row = segments, blocks, set(by_row)
        self._note(buffer, n_timesteps)
        return {"class": type(buffer).__name__, "segments": [asdict(one) for one in segments], "state": state}

    @staticmethod
    def plain_state(buffer: ReplayBuffer, encoder: Encoder) -> dict[str, Any]:
        """
        Encode what of a replay buffer is no row.

        :param buffer: A replay buffer.
        :param encoder: Encodes it.
        :return: What of it is no row.
        :raises CannotEncode: If that is more than data.
        """
        rows = row_arrays(buffer)
        for name, array in rows.items():
            if array.dtype.hasobject and not _is_infos(buffer, name):
                raise CannotEncode(f"replay_buffer.{name}", "an array of objects")
        return encoder.attributes(buffer, "replay_buffer", _NOT_STATE | {name.partition("/")[0] for name in rows} | {"infos"})

    def _note(self, buffer: ReplayBuffer, n_timesteps: int) -> None:
        self._buffer, self._pos, self._timesteps = buffer, buffer.pos, n_timesteps

    def _new_rows(self, buffer: ReplayBuffer, n_timesteps: int) -> tuple[int, int]:
        moved = (buffer.pos - self._pos) % buffer.buffer_size
        stepped = (n_timesteps - self._timesteps) // buffer.n_envs
        if buffer is not self._buffer or moved != stepped:
            # Somebody else filled it, replaced it, or it went round once and more
            return _all_rows(buffer)
        return self._pos, moved

    def _write(self, arrays: Mapping[str, np.ndarray], start: int, n_rows: int) -> Segment:
        return Segment(self.store.add_blob(pack(arrays)), start, n_rows, list(arrays))


def _n_valid(buffer: ReplayBuffer) -> int:
    """Rows that were ever written; a buffer's own ``size()`` may count fewer."""
    return buffer.buffer_size if buffer.full else buffer.pos


def _n_scanned(buffer: ReplayBuffer) -> int:
    """Rows in which something may be. Of a class that is not known nobody says that it leaves the others alone."""
    return _n_valid(buffer) if type(buffer) in _KNOWN else buffer.buffer_size


def _all_rows(buffer: ReplayBuffer) -> tuple[int, int]:
    return (buffer.pos, buffer.buffer_size) if buffer.full else (0, buffer.pos)


def _is_infos(buffer: ReplayBuffer, name: str) -> bool:
    return isinstance(buffer, HerReplayBuffer) and name == "infos"


def _split(buffer: ReplayBuffer) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Arrays that are written by row, and those that are looked at."""
    arrays = row_arrays(buffer)
    known = type(buffer) in _KNOWN
    by_row = {
        name: array
        for name, array in arrays.items()
        if _is_infos(buffer, name) or (known and name.partition("/")[0] in _WRITTEN_ONCE)
    }
    return by_row, {name: array for name, array in arrays.items() if name not in by_row}


def _chunks(arrays: Mapping[str, np.ndarray], start: int, n_rows: int, size: int) -> Iterator[tuple[int, int]]:
    """First row and number of rows of files that are not too large."""
    row_bytes = max(sum(array[0].nbytes for array in arrays.values() if len(array)), 1)
    most = max(_LARGEST // row_bytes, 1)
    for offset in range(0, n_rows, most):
        yield (start + offset) % size, min(most, n_rows - offset)


def _rows(buffer: ReplayBuffer, arrays: Mapping[str, np.ndarray], start: int, n_rows: int) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    stop = start + n_rows
    for name, array in arrays.items():
        rows = array[start:stop]
        if stop > len(array):
            rows = np.concatenate([rows, array[: stop - len(array)]])
        if _is_infos(buffer, name):
            encoder = Encoder()
            tree = encoder.finish(encoder.encode(rows, "replay_buffer.infos"))
            found |= {f"info:{key}": value for key, value in encoder.arrays.items()}
            rows, name = np.frombuffer(json.dumps(tree).encode(), np.uint8), "infos"
        found[f"rows:{name}"] = rows
    if buffer.optimize_memory_usage and "observations" in arrays:
        # There the next observation is stored: in the row that is written next
        found["ahead:observations"] = arrays["observations"][[stop % buffer.buffer_size]]
    return found


def _digests(array: np.ndarray, n_rows: int) -> Iterator[tuple[int, bytes]]:
    for block in range(-(-n_rows // _BLOCK)):
        rows = np.ascontiguousarray(array[block * _BLOCK : (block + 1) * _BLOCK])
        yield block, hashlib.sha256(rows.data).digest()


def _changed_blocks(
    arrays: Mapping[str, np.ndarray], blocks: dict[str, dict[int, bytes]], n_rows: int
) -> Iterator[dict[str, np.ndarray]]:
    """Blocks that are not as they were, as contents of files that are not too large; ``blocks`` is brought up to date."""
    found: dict[str, np.ndarray] = {}
    n_bytes = 0
    for name, array in arrays.items():
        known = blocks.setdefault(name, {})
        for block, value in _digests(array, n_rows):
            if known.get(block) != value:
                known[block] = value
                found[f"block {block}:{name}"] = rows = array[block * _BLOCK : (block + 1) * _BLOCK]
                n_bytes += rows.nbytes
                if n_bytes > _LARGEST:
                    yield found
                    found, n_bytes = {}, 0
    if found:
        yield found


def _needed(segments: list[Segment], n_valid: int) -> list[Segment]:
    """Segments that hold a row or a block that no later one holds."""
    kept: list[Segment] = []
    n_rows, blocks = 0, set[str]()
    for segment in reversed(segments):
        own = {name for name in segment.arrays if name.startswith("block ")}
        if (segment.n_rows and n_rows < n_valid) or own - blocks:
            kept.append(segment)
        n_rows += segment.n_rows
        blocks |= own
    return kept[::-1]


# --- Reading ---


def read_replay(buffer: ReplayBuffer, node: Mapping[str, Any], store: Store, decoder: Decoder) -> list[Segment]:
    """
    Fill a new, empty buffer with what a checkpoint holds.

    :param buffer: The buffer, of the same class and size.
    :param node: What :meth:`ReplayRecorder.record` gave.
    :param store: Where the segments are; each is read once.
    :param decoder: Decodes what is no row.
    :return: The segments.
    :raises Refused: If a segment is not what was written.
    :raises ValueError: If the buffer is of another class.
    """
    if type(buffer).__name__ != node["class"]:
        raise ValueError(f"the run's replay buffer is a {node['class']}, the model's is a {type(buffer).__name__}")
    segments = [Segment(**one) for one in node["segments"]]
    for segment in segments:
        arrays = unpack(store.blob(segment.blob), segment.arrays)
        infos = {name.partition(":")[2]: value for name, value in arrays.items() if name.startswith("info:")}
        for name, rows in arrays.items():
            kind, _, array_name = name.partition(":")
            if kind == "info":
                continue
            if _is_infos(buffer, array_name):
                tree = json.loads(rows.tobytes())
                rows = Decoder(tree, infos, decoder.names).decode(tree)
            target = _target(buffer, array_name, rows)
            if kind.startswith("block "):
                first = int(kind.removeprefix("block ")) * _BLOCK
                target[first : first + len(rows)] = rows
            else:
                first = segment.start + (segment.n_rows if kind == "ahead" else 0)
                target[np.arange(first, first + len(rows)) % buffer.buffer_size] = rows
    restore_replay_state(buffer, node, decoder)
    return segments


def restore_replay_state(buffer: ReplayBuffer, node: Mapping[str, Any], decoder: Decoder) -> None:
    """
    Give a replay buffer what was recorded of one.

    :param buffer: The buffer.
    :param node: What :meth:`ReplayRecorder.record` gave.
    :param decoder: Decodes it.
    """
    decoder.set_attributes(buffer, node["state"])


def _target(buffer: ReplayBuffer, name: str, rows: np.ndarray) -> np.ndarray:
    attribute, _, key = name.partition("/")
    value = getattr(buffer, attribute, None)
    if key:
        return value[key]  # type: ignore[index]
    if value is None:
        # Made when it was first needed
        value = np.zeros((buffer.buffer_size, *rows.shape[1:]), rows.dtype)
        setattr(buffer, attribute, value)
    return value
