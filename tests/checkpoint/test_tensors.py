"""safetensors files: equal to what the library and the Hub write, and suspicious of what others wrote."""

from __future__ import annotations

import json
import os
import random
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from huggingface_hub.serialization import save_torch_state_dict
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from states import same_tensors
from torch import Tensor

from mmkit.checkpoint.disk import Folder
from mmkit.checkpoint.tensors import _DTYPES, check, find_ties, open_files, open_index, open_stem, read_header, save
from mmkit.errors import CheckpointError

F32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


def bits(dtype: torch.dtype, *shape: int) -> Tensor:
    """A tensor of any dtype with known, varied bytes."""
    count = torch.Size(shape).numel()
    if dtype == torch.bool:
        return (torch.arange(count) % 2 == 0).reshape(shape)
    size = torch.empty((), dtype=dtype).element_size()
    return (torch.arange(count * size) % 120).to(torch.uint8).view(dtype).reshape(shape)


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Bitwise equality, NaN and all."""
    as_bytes = [t.contiguous().reshape(-1).view(torch.uint8) for t in (one, other)]
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*as_bytes)


def craft(header: Any, data: bytes = b"") -> bytes:
    """The bytes of a safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


# What is written


def test_the_library_reads_what_is_written(tmp_path: Path) -> None:
    """All dtypes; scalars, empty tensors, slices and transposed ones."""
    tensors = {f"{str(dtype)[6:]}.w": bits(dtype, 3, 5) for dtype in _DTYPES}
    large = bits(torch.float32, 6, 8)
    tensors |= {
        "scalar": torch.tensor(2.5, dtype=torch.bfloat16), "empty": torch.zeros(2, 0), "turned": large.T,
        "slice": large[1:3, ::2], "parameter": torch.nn.Parameter(torch.ones(2)), "wide": torch.ones(()).expand(3, 2),
        "conjugate": torch.tensor([1 + 2j]).conj(), "ä.日本.\U0001f600": torch.ones(1),
    }  # fmt: skip
    save(Folder(tmp_path), "model", tensors)
    theirs, ours = load_file(tmp_path / "model.safetensors"), open_stem(tmp_path, "model").load()
    assert theirs.keys() == ours.keys() == tensors.keys()
    for name, tensor in tensors.items():
        expected = tensor.detach().resolve_conj()
        assert same_bits(theirs[name], expected) and same_bits(ours[name], expected), name


def test_the_bytes_are_those_of_the_library(tmp_path: Path) -> None:
    common = (torch.int64, torch.float32, torch.bfloat16, torch.uint8, torch.bool)
    tensors = {f"{kind}.{place}": bits(dtype, 3, 5) for place in "ab" for kind, dtype in enumerate(common)}
    save(Folder(tmp_path), "model", tensors)
    save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_every_tensor_is_aligned_to_its_elements(tmp_path: Path) -> None:
    tensors = {f"{i}.{str(dtype)[6:]}": bits(dtype, 3) for i, dtype in enumerate(reversed(_DTYPES))}
    save(Folder(tmp_path), "model", tensors)
    content = (tmp_path / "model.safetensors").read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    assert size % 8 == 0
    for name, entry in json.loads(content[8 : 8 + size]).items():
        if name != "__metadata__":
            assert entry["data_offsets"][0] % tensors[name].element_size() == 0, name


@settings(deadline=None, max_examples=60)
@given(sizes=st.lists(st.integers(0, 40), max_size=12), limit=st.integers(1, 300))
def test_shards_are_those_of_the_hub(tmp_path_factory: pytest.TempPathFactory, sizes: list[int], limit: int) -> None:
    """The same split and the same names as huggingface_hub chooses, and all of it comes back."""
    folder = tmp_path_factory.mktemp("shards")
    tensors = {f"layer.{i}": torch.full((size,), float(i)) for i, size in enumerate(sizes)}
    save(Folder(folder), "model", tensors, limit)
    stored = open_stem(folder, "model")
    assert same_tensors(stored.load(), tensors)
    # The Hub's function starts with an empty shard where the first tensor alone is too large, or all are empty.
    expected = split_torch_state_dict_into_shards(tensors, max_shard_size=limit)
    if all(0 < tensor.nbytes <= limit for tensor in tensors.values()) and tensors:
        assert {n: p.name for n, p in stored.files.items()} == expected.tensor_to_filename
        if expected.is_sharded:
            index = json.loads((folder / "model.safetensors.index.json").read_text())
            assert index["metadata"]["total_size"] == expected.metadata["total_size"]


@pytest.mark.parametrize("limit", [10**9, 70])
def test_tied_tensors_are_stored_once(tmp_path: Path, limit: int) -> None:
    """Listed as the Hub lists them: their function chooses the same names and metadata, and each reads the other's."""
    table = torch.randn(4, 4)
    tensors = {"b.table": table, "a.out": table, "a.turned": table.T, "c.part": table[:2], "d.other": torch.randn(4, 4)}
    assert find_ties(tensors) == {"b.table": "a.out"}
    save(Folder(tmp_path), "model", tensors, limit)
    stored = open_stem(tmp_path, "model")
    assert stored.ties == {"b.table": "a.out"} and "b.table" not in stored.files
    loaded = stored.load()
    assert same_tensors(loaded, tensors) and loaded["b.table"] is loaded["a.out"]
    assert torch.equal(stored.load(["b.table"])["b.table"], table)
    hub = tmp_path / "hub"
    hub.mkdir()
    simple = {name: tensors[name] for name in ("b.table", "a.out", "d.other")}
    save_torch_state_dict(dict(simple), hub, max_shard_size=limit)
    theirs = open_stem(hub, "model")
    assert theirs.ties == stored.ties and same_tensors(theirs.load(), simple)


@pytest.mark.parametrize(
    ("name", "tensor", "said"),
    [
        ("a/../../b", torch.ones(1), "cannot be the name"),
        ("/etc", torch.ones(1), "cannot be the name"),
        ("", torch.ones(1), "cannot be the name"),
        ("a\nb", torch.ones(1), "cannot be the name"),
        ("__metadata__", torch.ones(1), "cannot be the name"),
        ("a", torch.ones(1, device="meta"), "a tensor of kind meta"),
        ("a", torch.ones(1, dtype=torch.complex128), "a tensor of kind torch.complex128"),
        ("a", torch.ones(2, 2).to_sparse(), "torch.sparse_coo"),
    ],
)
def test_what_could_not_be_given_back_is_refused(name: str, tensor: Tensor, said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        check({name: tensor}, "model")


# What is read


CRAFTED = {
    "a name twice": craft(b'{"a":%b,"a":%b}' % ((json.dumps(F32).encode(),) * 2), b"0000"),
    "a name twice, two shapes": craft(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        b"00001111",
    ),
    "a field twice": craft(b'{"a":{"dtype":"F32","dtype":"I32","shape":[1],"data_offsets":[0,4]}}', b"0000"),
    "metadata twice": craft(
        b'{"__metadata__":{"q":"1"},"__metadata__":{"q":"2"},"a":%b}' % json.dumps(F32).encode(), b"0000"
    ),
    "a metadata key twice": craft(b'{"__metadata__":{"q":"1","q":"2"},"a":%b}' % json.dumps(F32).encode(), b"0000"),
    "metadata of numbers": craft({"__metadata__": {"q": 1}, "a": F32}, b"0000"),
    "a path as name": craft({"../../x": F32}, b"0000"),
    "an absolute path as name": craft({"/etc/passwd": F32}, b"0000"),
    "a Windows path as name": craft({"..\\x": F32}, b"0000"),
    "an empty name": craft({"": F32}, b"0000"),
    "a name with NUL": craft({"a\0b": F32}, b"0000"),
    "a name with an escape": craft({"a\x1b[2Jb": F32}, b"0000"),
    "a pickle after it": craft({"a": F32}, b"0000\x80\x04K\x01."),
    "a zip after it": craft({"a": F32}, b"0000PK\x03\x04"),
    "a hole": craft({"a": {**F32, "data_offsets": [4, 8]}}, b"0" * 8),
    "an overlap": craft({"a": F32, "b": F32}, b"0000"),
    "offsets that turn back": craft({"a": {**F32, "data_offsets": [4, 0]}}, b"0000"),
    "offsets beyond the end": craft({"a": {**F32, "data_offsets": [0, 400]}}, b"0000"),
    "another size than its shape": craft({"a": {**F32, "shape": [2]}}, b"0000"),
    "a negative shape": craft({"a": {**F32, "shape": [-1]}}, b"0000"),
    "a shape that overflows": craft({"a": {**F32, "shape": [2**62, 4]}}, b"0000"),
    "a shape of floats": craft({"a": {**F32, "shape": [1.0]}}, b"0000"),
    "a field too many": craft({"a": {**F32, "reduce": "os.system"}}, b"0000"),
    "a field too few": craft({"a": {"dtype": "F32", "shape": [1]}}, b"0000"),
    "an unknown dtype": craft({"a": {**F32, "dtype": "OBJECT"}}, b"0000"),
    "no entry": craft({"a": 3}, b"0000"),
    "other JSON": craft([1]),
    "no JSON": craft(b"{'a': 1}"),
    "no header": craft(b""),
    "bad UTF-8": craft(b'{"\xff":%b}' % json.dumps(F32).encode(), b"0000"),
    "deep JSON": craft(b'{"a":' * 100_000),
    "a number without end": craft(b'{"a":' + b"9" * 10_000 + b"}"),
    "a header beyond the end": struct.pack("<Q", 1000) + b"{}",
    "a header of 2^63 bytes": struct.pack("<Q", 2**63) + b"{}",
    "seven bytes": b"1234567",
    "nothing": b"",
}


@pytest.mark.parametrize("case", CRAFTED)
def test_crafted_files_are_refused(tmp_path: Path, case: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(CRAFTED[case])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: "):
        open_files([path]).load()


def test_a_bool_of_other_bytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(craft({"a": {"dtype": "BOOL", "shape": [2], "data_offsets": [0, 2]}}, b"\1\2"))
    with pytest.raises(CheckpointError, match="other bytes than 0 and 1"):
        open_files([path]).load()


def test_mutants_load_or_are_refused(tmp_path: Path) -> None:
    """1,500 damaged files: nothing but a `CheckpointError` comes out."""
    path, chance = tmp_path / "model.safetensors", random.Random(0)
    save(Folder(tmp_path), "model", {"a.w": bits(torch.float32, 3), "b.w": bits(torch.bool, 5), "c": bits(torch.int64)})
    original, refused = path.read_bytes(), 0
    for _ in range(1500):
        mutant = bytearray(original)
        for _ in range(chance.choice((1, 1, 2, 5))):
            where = chance.randrange(min(len(mutant), 300))
            how = chance.random()
            if how < 0.6:
                mutant[where] = chance.randrange(256)
            elif how < 0.8:
                del mutant[where : where + chance.randrange(1, 9)]
            else:
                mutant[where:where] = original[where : where + chance.randrange(1, 9)]
        path.write_bytes(mutant)
        try:
            open_files([path]).load()
        except CheckpointError:
            refused += 1
    assert 1000 < refused < 1500


def shards(folder: Path) -> Path:
    """A checkpoint in two shards, and its index."""
    save(Folder(folder), "model", {"a": torch.ones(4), "b": torch.zeros(4)}, 16)
    return folder / "model.safetensors.index.json"


@pytest.mark.parametrize(
    "name",
    [
        "../model-00002-of-00002.safetensors", "/etc/passwd", "/dev/zero", "https://a.b/c.safetensors", "a/b.safetensors",
        "..", "", ".hidden.safetensors", "model.bin", "C:\\x.safetensors", "\\\\host\\x.safetensors", "a\0.safetensors",
        "file:///etc/x.safetensors", "~/x.safetensors", "-rf.safetensors",
    ],
)  # fmt: skip
def test_an_index_names_files_beside_it_only(tmp_path: Path, name: str) -> None:
    index = shards(tmp_path)
    content = json.loads(index.read_text())
    content["weight_map"]["b"] = name
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="which is not a safetensors file beside it"):
        open_index(index)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    home, away = tmp_path / "home", tmp_path / "away"
    home.mkdir(), away.mkdir()
    index = shards(home)
    shard = home / "model-00002-of-00002.safetensors"
    shard.rename(away / shard.name)
    shard.symlink_to(away / shard.name)
    with pytest.raises(CheckpointError, match=f"{shard.name}: is a link to a place outside its folder"):
        open_index(index)
    assert torch.equal(open_index(index, root=tmp_path).load()["b"], torch.zeros(4))
    shard.unlink()
    shard.symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match="is not a regular file"):
        open_index(index, root=Path("/"))
    shard.unlink()
    os.mkfifo(shard)
    with pytest.raises(CheckpointError, match="is not a regular file"):
        open_index(index)
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"{shard.name}: cannot be read"):
        open_index(index)


def test_an_index_and_its_shards_agree(tmp_path: Path) -> None:
    index = shards(tmp_path)
    one, two = sorted(tmp_path.glob("*.safetensors"))
    one.rename(tmp_path / "aside")
    two.rename(one)
    (tmp_path / "aside").rename(two)
    with pytest.raises(CheckpointError, match=f"{one.name}: lacks 'a', which {index.name} says it holds"):
        open_index(index)
    save_file({"a": torch.ones(4), "c": torch.ones(1)}, one)
    save_file({"b": torch.ones(4)}, two)
    with pytest.raises(CheckpointError, match=f"{one.name}: holds 'c', of which {index.name} says nothing"):
        open_index(index)
    save_file({"b": torch.ones(4)}, one)
    with pytest.raises(CheckpointError, match=f"{two.name}: holds 'b', which {one.name} holds too"):
        open_index(index)
    for text in ("[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 1}}', '{"weight_map": {}, "metadata": 3}', "{"):
        index.write_text(text)
        with pytest.raises(CheckpointError, match=index.name):
            open_index(index)


def test_foreign_metadata_is_no_tie(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"w": torch.ones(1)}, path, metadata={"format": "pt", "modelspec.title": "w2", "../x": "w", "w": "w"})
    assert open_files([path]).names == ["w"]
    assert read_header(path)[0] == ["w"]


def test_nothing_but_the_wanted_tensors_is_read(tmp_path: Path) -> None:
    """The shard that holds no wanted tensor may be gone by then."""
    index = shards(tmp_path)
    stored = open_index(index)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    assert stored.load(["a"]).keys() == {"a"}
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors: cannot be read"):
        stored.load()


def test_what_is_loaded_does_not_write_to_the_file(tmp_path: Path) -> None:
    save(Folder(tmp_path), "model", {"a": torch.ones(4)})
    before = (tmp_path / "model.safetensors").read_bytes()
    open_stem(tmp_path, "model").load()["a"].fill_(7)
    assert (tmp_path / "model.safetensors").read_bytes() == before
