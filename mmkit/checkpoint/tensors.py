"""Tensors in safetensors files: written one at a time and hashed on the way, read lazily and with suspicion.

The layout is the Hub's: ``model.safetensors``, or ``model-00001-of-00003.safetensors`` ... with
``model.safetensors.index.json``; of tensors that share their memory, one is stored and the others are listed in the
metadata. Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mmkit.checkpoint.disk import Folder, Sink, explained
from mmkit.checkpoint.manifest import PLAIN_NAME, read_bounded
from mmkit.errors import CheckpointError

MAX_SHARD_SIZE = 5 * 10**9

# Large elements come first in a file, so that every tensor is aligned to its own element size.
_DTYPES = {
    torch.uint64: "U64", torch.int64: "I64", torch.float64: "F64", torch.complex64: "C64",
    torch.float32: "F32", torch.uint32: "U32", torch.int32: "I32",
    torch.bfloat16: "BF16", torch.float16: "F16", torch.uint16: "U16", torch.int16: "I16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_RANK = {dtype: rank for rank, dtype in enumerate(_DTYPES)}
_HEADER_LIMIT = 100_000_000
_BAD_NAME = re.compile(r"[\x00-\x1f\x7f\\]|^/|(^|/)\.\.(/|$)|^$")
_REMEDY = "get the file again from where it came from"


# Writing


def save(folder: Folder, stem: str, tensors: Mapping[str, Tensor], max_shard_size: int = MAX_SHARD_SIZE) -> None:
    """Writes tensors as ``<stem>.safetensors``, or as shards of at most `max_shard_size` bytes with an index."""
    ties = find_ties(tensors)
    stored = {name: tensor for name, tensor in tensors.items() if name not in ties}
    shards = _split(stored, max_shard_size)
    if len(shards) == 1:
        with folder.file(f"{stem}.safetensors") as sink:
            write_file(sink, stored, {"format": "pt", **ties})
        return
    where = {}
    for number, shard in enumerate(shards, 1):
        name = f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        with folder.file(name) as sink:
            write_file(sink, shard, {"format": "pt"})
        where.update(dict.fromkeys(shard, name))
    metadata = {"total_size": sum(t.nbytes for t in stored.values()), **ties}
    folder.text(f"{stem}.safetensors.index.json", json.dumps({"metadata": metadata, "weight_map": where}, indent=2))


def check(tensors: Mapping[str, Tensor], place: str) -> None:
    """Raises `CheckpointError` on names and tensors that a file could not give back as they are."""
    for name, tensor in tensors.items():
        if _BAD_NAME.search(name) or name in ("__metadata__", "format", "total_size"):
            raise CheckpointError(place, f"{name!r} cannot be the name of a tensor", "rename it")
        if tensor.dtype not in _DTYPES or tensor.is_meta or tensor.layout != torch.strided:
            kind = "meta" if tensor.is_meta else f"{tensor.dtype} {tensor.layout}"
            raise CheckpointError(f"{place}: {name}", f"a tensor of kind {kind} cannot be stored", "convert it first")


def find_ties(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Names that stand for the very tensor another name stores: the alphabetically first name of each group is stored."""
    first: dict[tuple[Any, ...], str] = {}
    ties = {}
    for name in sorted(tensors):
        tensor = tensors[name]
        if tensor.numel():
            key = (tensor.device, tensor.dtype, tensor.data_ptr(), tensor.shape, tensor.stride())
            if first.setdefault(key, name) != name:
                ties[name] = first[key]
    return ties


def write_file(sink: Sink, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """One safetensors file. At most one tensor at a time is copied to main memory."""
    header: dict[str, Any] = {"__metadata__": metadata}
    order = sorted(tensors, key=lambda name: (_RANK[tensors[name].dtype], name))
    start = 0
    for name in order:
        stop = start + tensors[name].nbytes
        dtype, shape = _DTYPES[tensors[name].dtype], list(tensors[name].shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    sink.write(len(text).to_bytes(8, "little") + text)
    for name in order:
        flat = tensors[name].detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
        sink.write(flat.view(torch.uint8).numpy().data)


def _split(tensors: Mapping[str, Tensor], limit: int) -> list[dict[str, Tensor]]:
    """Shards in the order of the names; a tensor above the limit has one of its own. At least one, if empty."""
    shards: list[dict[str, Tensor]] = [{}]
    room = limit
    for name, tensor in tensors.items():
        if tensor.nbytes > room and shards[-1]:
            shards.append({})
            room = limit
        shards[-1][name] = tensor
        room -= tensor.nbytes
    return shards


# Reading


@dataclass(frozen=True)
class Stored:
    """The tensors of some safetensors files, by name. Nothing but headers is read before `load`."""

    place: Path
    files: dict[str, Path]
    ties: dict[str, str] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """All names, those of tied tensors included."""
        return [*self.files, *self.ties]

    def load(self, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """The tensors of these names (of all) on the CPU; tied names give one tensor. Raises `CheckpointError`."""
        wanted = {name: self.ties.get(name, name) for name in (self.names if names is None else names)}
        by_file: dict[Path, set[str]] = {}
        for stored in wanted.values():
            by_file.setdefault(self.files[stored], set()).add(stored)
        loaded: dict[str, Tensor] = {}
        for path, mine in by_file.items():
            with _opened(path) as file:
                loaded |= {name: _sane(file.get_tensor(name), path, name) for name in sorted(mine)}
        return {name: loaded[stored] for name, stored in wanted.items()}


def open_stem(folder: Path, stem: str, root: Path | None = None) -> Stored:
    """What `save` wrote under a stem."""
    index = folder / f"{stem}.safetensors.index.json"
    return open_index(index, root) if index.exists() else open_files([folder / f"{stem}.safetensors"], root)


def open_files(paths: Iterable[Path], root: Path | None = None) -> Stored:
    """The tensors of files that lie under `root` (by default, in their own folder). Refuses names given twice."""
    files: dict[str, Path] = {}
    ties: dict[str, str] = {}
    place = Path()
    for place in paths:
        names, metadata = read_header(confined(place, root))
        for name in names:
            if name in files:
                raise CheckpointError(
                    str(place), f"holds {name!r}, which {files[name].name} holds too", "name one file"
                )
            files[name] = place
        ties |= metadata
    return Stored(place.parent, files, _known(ties, files))


def open_index(index: Path, root: Path | None = None) -> Stored:
    """The tensors of a sharded checkpoint. Every name must be where the index says, and nowhere else."""
    with explained(index, "cannot be read"):
        content = _parse(read_bounded(confined(index, root)), index)
    where, metadata = content.get("weight_map"), content.get("metadata") or {}
    texts = isinstance(where, dict) and all(isinstance(value, str) for value in where.values())
    if not texts or not isinstance(metadata, dict):
        raise CheckpointError(str(index), "has no `weight_map` of names and files", _REMEDY)
    for name in where.values():
        if not PLAIN_NAME.fullmatch(name) or not name.endswith(".safetensors"):
            raise CheckpointError(str(index), f"names {name!r}, which is not a safetensors file beside it", _REMEDY)
    found = open_files([index.parent / name for name in sorted(set(where.values()))], root)
    for name, file in where.items():
        if name not in found.files or found.files[name].name != file:
            raise CheckpointError(
                str(index.parent / file), f"lacks {name!r}, which {index.name} says it holds", _REMEDY
            )
    for name, path in found.files.items():
        if name not in where:
            raise CheckpointError(str(path), f"holds {name!r}, of which {index.name} says nothing", _REMEDY)
    return Stored(index.parent, found.files, _known(metadata, found.files))


def confined(path: Path, root: Path | None = None) -> Path:
    """The path itself, once it is sure to be a regular file under `root` (its own folder), links followed."""
    with explained(path, "cannot be read"):
        actual = path.resolve(strict=True)
        regular = stat.S_ISREG(actual.stat().st_mode)
        inside = actual.is_relative_to((root or path.parent).resolve())
    if not regular or not inside:
        fact = "is not a regular file" if not regular else "is a link to a place outside its folder"
        raise CheckpointError(str(path), fact, "put the file itself there")
    return path


def read_header(path: Path) -> tuple[list[str], dict[str, str]]:
    """The names and the metadata of a safetensors file.

    Refuses, beyond what the safetensors library does: names given twice, empty names, names with control characters or
    path steps, and entries with fields that the format does not have.
    """
    with explained(path, "cannot be read"), path.open("rb") as file:
        start = file.read(8)
        size = int.from_bytes(start, "little")
        if len(start) < 8 or size > min(_HEADER_LIMIT, path.stat().st_size - 8):
            raise CheckpointError(str(path), _what_else(start), _REMEDY)
        header = _parse(file.read(size), path)
    metadata = header.pop("__metadata__", {})
    for name, entry in header.items():
        if _BAD_NAME.search(name):
            raise CheckpointError(str(path), f"holds a tensor of the name {name!r}, which is not allowed", _REMEDY)
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise CheckpointError(str(path), f"describes tensor {name!r} in a way the format does not have", _REMEDY)
    with _opened(path):
        return list(header), metadata


def _what_else(start: bytes) -> str:
    if start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        return "is a pickle under another name, and loading a pickle can run any code"
    return "is not a safetensors file"


def _parse(content: bytes, path: Path) -> dict[str, Any]:
    try:
        parsed = json.loads(content.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(str(path), f"cannot be parsed ({error})", _REMEDY) from None
    if not isinstance(parsed, dict):
        raise CheckpointError(str(path), "cannot be parsed (its JSON is not an object)", _REMEDY)
    return parsed


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"{twice!r} is given twice")
    return found


def _known(metadata: Mapping[str, Any], files: Mapping[str, Path]) -> dict[str, str]:
    """The ties among a file's metadata, which may hold anything else as well."""
    return {
        name: stored
        for name, stored in metadata.items()
        if isinstance(stored, str) and stored in files and name not in files and not _BAD_NAME.search(name)
    }


def _sane(tensor: Tensor, path: Path, name: str) -> Tensor:
    """Other bytes than 0 and 1 in a bool tensor are undefined behaviour further on."""
    if tensor.dtype == torch.bool and tensor.numel() and tensor.view(torch.uint8).max() > 1:
        raise CheckpointError(str(path), f"{name!r} is of type bool but holds other bytes than 0 and 1", _REMEDY)
    return tensor


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with explained(path, "cannot be read"), safe_open(path, "pt") as file:
            yield file
    except SafetensorError as error:
        raise CheckpointError(str(path), f"is damaged ({error})", _REMEDY) from None


def listed(items: Sequence[str], most: int = 12) -> str:
    """Names for an error message: the first few, and how many more there are."""
    rest = len(items) - most
    return ", ".join(items[:most]) + (f", and {rest} more" if rest > 0 else "")
