"""What tokenizers gave for contents, kept on disk for the next one who asks: other arms, or the same run once more.

One file of SQLite for each tokenizer and kind of machine, named by a digest of both. A row is one call of `encode`: all
contents of a batch together, since what stands beside a picture may change the last bits of its latents (a convolution
over one picture takes another path than over two). Of a tokenizer that takes them one after another (`separable`), a row is
one content, found again in whatever batch it comes next. So what is found is what would be computed, bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import sqlite3
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmkit.contracts.tokenizer import Tokenizer

FORMAT = 1
LIMIT = 8 << 30
"""Bytes of one file, past which nothing more is kept."""
PATIENCE = 10.0
"""Seconds to wait for another process that writes; after that, what is asked for is computed."""
_SUM = 16
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


class Store:
    """A folder of what tokenizers gave. Several processes may use it at once, and be killed at any moment.

    A file that is damaged, or cannot be read or written, is told of in a warning and left alone: training goes on without.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._shelves: dict[str, _Shelf] = {}
        self._marks: dict[Tokenizer, tuple[Any, str]] = {}

    def encode(
        self, tokenizer: Tokenizer, options: str, contents: Sequence[Any], device: torch.device,
        compute: Callable[[Sequence[Any]], list[Tensor]],
    ) -> list[Tensor]:  # fmt: skip
        """The tokens of contents, on a device: as they were kept, or as `compute` gives them, and then they are kept.

        Args:
            tokenizer: one that is not `keepable`, or is in training mode, is always asked.
            options: how it was built; with its weights, what makes it the tokenizer it is.
            contents: what is to be encoded.
            device: where it is.
            compute: `tokenizer.encode`, on that device.
        """
        if not tokenizer.keepable or tokenizer.training or not all(isinstance(c, Tensor) for c in contents):
            return compute(contents)
        name = _digest(f"{self._weights(tokenizer)} {options} {_machine(device)}".encode()).hex()
        if name not in self._shelves:
            self._shelves[name] = _Shelf(self.folder / f"{name}.sqlite")
        rows = [[content] for content in contents] if tokenizer.separable else [contents]
        return [tokens for row in rows for tokens in self._row(self._shelves[name], row, device, compute)]

    def _row(
        self, shelf: _Shelf, contents: Sequence[Any], device: torch.device,
        compute: Callable[[Sequence[Any]], list[Tensor]],
    ) -> list[Tensor]:  # fmt: skip
        key = _key(contents)
        if (kept := shelf.get(key)) is not None:
            return [tokens.to(device) for tokens in unpacked(kept)]
        computed = compute(contents)
        shelf.put(key, packed(computed))
        return computed

    def _weights(self, tokenizer: Tokenizer) -> str:
        """The digest of a tokenizer's tensors, taken anew where any was written to since."""
        tensors = {**dict(tokenizer.named_parameters()), **dict(tokenizer.named_buffers())}
        mark = tuple((name, value.data_ptr(), value._version) for name, value in tensors.items())
        if self._marks.get(tokenizer, ((), ""))[0] != mark:
            digest = hashlib.blake2b(digest_size=20)
            for name in sorted(tensors):
                _add(digest, name, tensors[name])
            self._marks[tokenizer] = mark, digest.hexdigest()
        return self._marks[tokenizer][1]


class _Damaged(Exception):
    """What was read is not what was written."""


class _Shelf:
    """One file: digests of contents, and the bytes kept for them with a sum over both."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.gives = self.takes = True
        self._connection: sqlite3.Connection | None = None

    def get(self, key: bytes) -> bytes | None:
        """The bytes kept under a key, where there are any and they are those that were put there."""
        if not self.gives:
            return None
        with self._spared():
            found = self._open().execute("SELECT value FROM kept WHERE key = ?", (key,)).fetchone()
            if found is None:
                return None
            value = found[0]
            if not isinstance(value, bytes) or value[:_SUM] != _sum(key, value[_SUM:]):
                raise _Damaged("an entry is not what was written")
            return value[_SUM:]
        return None

    def put(self, key: bytes, value: bytes) -> None:
        """Keeps bytes, unless another process writes for too long, or the file has its full size."""
        if not self.takes:
            return
        with self._spared():
            connection = self._open()
            if self.path.stat().st_size + len(value) > LIMIT:
                self.takes = False
                warnings.warn(f"{self.path}: has its full size ({LIMIT:,} bytes); nothing is added to it", stacklevel=2)
                return
            connection.execute("INSERT OR IGNORE INTO kept VALUES (?, ?)", (key, _sum(key, value) + value))

    @contextmanager
    def _spared(self) -> Iterator[None]:
        """Training does not end with a file that only saves time: it is told of once, and left alone from there on."""
        try:
            yield
        except (sqlite3.Error, OSError, _Damaged) as error:
            if isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", None) in _BUSY:
                return
            self.gives = self.takes = False
            fact = f"{self.path}: {error}; what it kept is computed again. Remove it once no run uses it"
            warnings.warn(fact, stacklevel=4)

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
            # A rollback journal works over a network file system, where a write-ahead log does not. It is not synced: after
            # a kill the file is whole; what a power cut leaves is found out by the sums.
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute("CREATE TABLE IF NOT EXISTS kept (key BLOB PRIMARY KEY, value BLOB NOT NULL)")
            self._connection = connection
        return self._connection


def packed(tensors: Sequence[Tensor]) -> bytes:
    """Tensors as bytes: a line of JSON with their types, shapes and strides, and their bytes as they lie in memory."""
    dense = [t.detach().clone() for t in tensors]  # without gaps or overlaps, and else as they lie
    head = [[str(t.dtype).removeprefix("torch."), list(t.shape), list(t.stride())] for t in dense]
    return json.dumps(head).encode() + b"\n" + b"".join(_bytes(_as_it_lies(t)).tobytes() for t in dense)


def unpacked(data: bytes) -> list[Tensor]:
    """The tensors of `packed`. Their strides, too: another order in memory may add up in another order."""
    head, _, body = data.partition(b"\n")
    found, start = [], 0
    for name, shape, stride in json.loads(head):
        dtype = getattr(torch, name)
        length = math.prod(shape) * dtype.itemsize
        flat = (
            torch.frombuffer(bytearray(body[start : start + length]), dtype=dtype)
            if length
            else torch.empty(0, dtype=dtype)
        )
        found.append(flat.as_strided(shape, stride))
        start += length
    return found


def _as_it_lies(tensor: Tensor) -> Tensor:
    """A dense tensor's numbers in the order of memory."""
    return tensor.as_strided((tensor.numel(),), (1,))


def _bytes(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def _key(contents: Sequence[Tensor]) -> bytes:
    digest = hashlib.blake2b(digest_size=20)
    for content in contents:
        _add(digest, "", content)
    return digest.digest()


def _add(digest: Any, name: str, tensor: Tensor) -> None:
    digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} {list(tensor.stride())}\n".encode())
    digest.update(_bytes(tensor))


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_SUM).digest()


def _sum(key: bytes, value: bytes) -> bytes:
    return hashlib.blake2b(value, digest_size=_SUM, key=key).digest()


def _machine(device: torch.device) -> str:
    """What the last bits of a result depend on besides the numbers that go in."""
    cuda = device.type == "cuda"
    where = (
        torch.cuda.get_device_name(device)
        if cuda
        else f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    )
    cast = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
    precision = torch.get_float32_matmul_precision()
    return f"{FORMAT} {torch.__version__} {device.type} {where} {torch.get_num_threads()} {cast} {precision}"
