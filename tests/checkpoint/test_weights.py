"""`weights:` loads a part whole or not at all, and never what could run code."""

from __future__ import annotations

import io
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from states import training_state
from torch import Tensor, nn

from mmkit.checkpoint import latest, load_part, open_run, read, verify, write
from mmkit.checkpoint.weights import UNTRUSTED, find
from mmkit.errors import CheckpointError

MakeRun = Callable[..., Path]


class Eye(nn.Module):
    """Fits ``encoders.eye`` of the small training state."""

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 3, width, bias=False)
        self.register_buffer("seen", torch.tensor(0))


class Text(nn.Module):
    """Its buffer has the length of whatever is loaded, as a sentencepiece model's has."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("proto", torch.zeros(0, dtype=torch.uint8))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: object) -> None:
        if prefix + "proto" in state_dict:
            saved = state_dict[prefix + "proto"]
            if saved[0] != 0:
                raise ValueError("not a sentencepiece model")
            self.proto = self.proto.new_empty(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def frozen_copy(module: nn.Module) -> dict[str, Tensor]:
    """What the module holds now."""
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def unchanged(module: nn.Module, before: dict[str, Tensor]) -> bool:
    """Whether it still does."""
    now = module.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[name], before[name]) for name in now)


def test_a_part_of_a_run(make_run: MakeRun) -> None:
    """By the same path, by another one, of one checkpoint, in the part's own dtype."""
    run = make_run(3, 4)
    model = training_state(4)["model"]
    for reference, path in (
        (f"{run}", "encoders.eye"),
        (f"{run}#encoders.eye", "encoders.other"),
        (f"{run}/checkpoints/step-00000004", "encoders.eye"),
        (f"{run}/checkpoints/step-00000004#encoders.eye", "encoders.other"),
    ):
        eye = Eye()
        load_part(eye, reference, path)
        assert eye.conv.weight.dtype == torch.float32 and eye.seen == 4
        assert torch.equal(eye.conv.weight, model["encoders.eye.conv.weight"].float())
    load_part(eye, f"{run}/checkpoints/step-00000003", "encoders.eye")
    assert eye.seen == 3


def test_averages_are_preferred(make_run: MakeRun) -> None:
    head = nn.ModuleDict({"out": nn.Linear(4, 11, bias=False)})
    load_part(head, str(make_run(3)), "heads.say")
    assert torch.equal(head["out"].weight, training_state(3)["ema"]["connectors.text.table"])


def test_a_module_that_loads_itself(make_run: MakeRun) -> None:
    run = make_run(3)
    text = Text()
    load_part(text, str(run), "tokenizers.text")
    assert torch.equal(text.proto, torch.arange(6, dtype=torch.uint8))
    wrapped = nn.ModuleDict({"text": Text(), "other": nn.Linear(2, 2)})
    before = frozen_copy(wrapped)
    save_file({"text.proto": torch.ones(3, dtype=torch.uint8), "other.weight": torch.ones(2, 2), "other.bias": torch.ones(2)},
              run / "odd.safetensors")  # fmt: skip
    with pytest.raises(CheckpointError, match=r"do not fit \(not a sentencepiece model\)"):
        load_part(wrapped, str(run / "odd.safetensors"), "tokenizers.wrapped")
    assert unchanged(wrapped, before)
    save_file({"other.weight": torch.ones(2, 2), "other.bias": torch.ones(2)}, run / "odd.safetensors")
    with pytest.raises(CheckpointError, match=r"Missing key\(s\) in state_dict: \"text.proto\""):
        load_part(wrapped, str(run / "odd.safetensors"), "tokenizers.wrapped")
    assert unchanged(wrapped, before)


def test_all_that_differs_is_said_at_once_and_nothing_is_loaded(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 4), *(nn.Linear(2, 2) for _ in range(10)))
    tensors = {name: t + 1 for name, t in model.state_dict().items() if not name.startswith(tuple("23456789"))}
    tensors |= {"0.weight": torch.zeros(4, 5), "1.bias": torch.zeros(2, dtype=torch.int64), "extra.w": torch.ones(1)}
    save_file(tensors, tmp_path / "model.safetensors")
    before = frozen_copy(model)
    with pytest.raises(CheckpointError) as caught:
        load_part(model, str(tmp_path), "backbone")
    said = str(caught.value)
    assert said.startswith(f"backbone: the weights of {tmp_path} do not fit, and nothing was loaded:")
    assert "16 missing: 2.bias, 2.weight, 3.bias" in said and "7.weight, and 4 more" in said and "8.bias" not in said
    assert "1 unexpected: extra.w" in said
    assert "0.weight (float32 [4, 5] in the checkpoint, float32 [4, 3] in the part)" in said
    assert "1.bias (int64 [2] in the checkpoint, float32 [2] in the part)" in said
    assert unchanged(model, before)


def test_folders_and_files_of_plain_names(tmp_path: Path) -> None:
    linear = nn.Linear(2, 3)
    weights = {"weight": torch.ones(3, 2), "bias": torch.zeros(3)}
    save_file(weights, tmp_path / "model.safetensors")
    for reference in (str(tmp_path), str(tmp_path / "model.safetensors")):
        linear.reset_parameters()
        load_part(linear, reference, "connectors.eye")
        assert torch.equal(linear.weight, weights["weight"]) and torch.equal(linear.bias, weights["bias"])
    save_file({f"decoder.{name}": tensor + 1 for name, tensor in weights.items()}, tmp_path / "second.safetensors")
    load_part(linear, f"{tmp_path}#decoder", "connectors.eye")
    assert torch.equal(linear.bias, torch.ones(3))
    with pytest.raises(CheckpointError, match=r"has no tensor under 'encoder'. its names are: bias, decoder.bias"):
        load_part(linear, f"{tmp_path}#encoder", "connectors.eye")
    save_file(weights, tmp_path / "third.safetensors")
    with pytest.raises(CheckpointError, match=r"third\.safetensors: holds 'bias', which model\.safetensors holds too"):
        load_part(linear, str(tmp_path), "connectors.eye")


def test_a_damaged_run_is_not_loaded_from(make_run: MakeRun) -> None:
    run = make_run(3)
    file = run / "checkpoints/step-00000003/model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: is damaged"):
        load_part(Eye(), f"{run}/checkpoints/step-00000003", "encoders.eye")
    with warnings.catch_warnings(), pytest.raises(CheckpointError, match="has no checkpoint that can be used"):
        warnings.simplefilter("ignore")
        load_part(Eye(), str(run), "encoders.eye")


def test_what_is_not_there(tmp_path: Path, make_run: MakeRun) -> None:
    for reference, said in (
        (tmp_path / "nowhere", "nowhere: does not exist"),
        (tmp_path / "no.safetensors", "no.safetensors: cannot be read"),
        (f"{make_run(1)}#heads.draw", "has no part 'heads.draw'"),
        (f"{tmp_path}/runs/a/checkpoints/step-00000009", "manifest.json: is missing"),
    ):
        with pytest.raises(CheckpointError, match=said):
            load_part(Eye(), str(reference), "encoders.eye")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"empty: holds no \*\.safetensors"):
        load_part(Eye(), str(tmp_path / "empty"), "encoders.eye")
    for name in ("a", "b"):
        (tmp_path / f"empty/{name}.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"holds several checkpoints: a\.safetensors\.index\.json, b\.saf"):
        load_part(Eye(), str(tmp_path / "empty"), "encoders.eye")


# The Hub's cache


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One repository as the Hub's client keeps it: files are links to blobs."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    repository = cache / "models--org--name"
    snapshot = repository / "snapshots" / ("0" * 40)
    (snapshot / "vae").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("0" * 40)
    (repository / "blobs").mkdir()
    for blob, link, value in (("aa", "model.safetensors", 1.0), ("bb", "vae/model.safetensors", 2.0)):
        save_file({"weight": torch.full((2, 2), value), "bias": torch.zeros(2)}, repository / "blobs" / blob)
        depth = "../" * (2 + link.count("/"))
        (snapshot / link).symlink_to(f"{depth}blobs/{blob}")
    return snapshot


def test_the_hub_is_looked_up_in_the_local_cache(cached: Path) -> None:
    for reference, value in (("hf://org/name", 1.0), ("hf://org/name/vae", 2.0), (str(cached), 1.0),
                             (f"{cached}/vae", 2.0), (f"{cached}/model.safetensors", 1.0)):  # fmt: skip
        linear = nn.Linear(2, 2)
        load_part(linear, reference, "connectors.eye")
        assert torch.equal(linear.weight, torch.full((2, 2), value)), reference


def test_nothing_is_downloaded(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise AssertionError("opened a socket")

    monkeypatch.setattr("socket.socket.connect", no_network)
    with pytest.raises(CheckpointError, match=r"is not in the local Hugging Face cache. run `hf download org/other`"):
        load_part(nn.Linear(2, 2), "hf://org/other", "backbone")
    with pytest.raises(CheckpointError, match=r"run `hf download org/name --revision v2`"):
        load_part(nn.Linear(2, 2), "hf://org/name@v2", "backbone")
    with pytest.raises(CheckpointError, match="missing: does not exist"):
        load_part(nn.Linear(2, 2), "hf://org/name/missing", "backbone")


def test_a_link_out_of_the_cached_repository_is_refused(cached: Path, tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2, 2), "bias": torch.zeros(2)}, tmp_path / "secret")
    (cached / "model.safetensors").unlink()
    (cached / "model.safetensors").symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match="is a link to a place outside its folder"):
        load_part(nn.Linear(2, 2), "hf://org/name", "backbone")


# Pickles


class Trap:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return (Path.write_text, (self.mark, "executed"))  # type: ignore[return-value]


def payloads(mark: Path) -> dict[str, bytes]:
    """The same trap in every wrapping that some loader would open."""
    found = {f"protocol {number}": pickle.dumps(Trap(mark), number) for number in range(6)}
    for name, zipped in (("torch zip", True), ("torch legacy", False)):
        stream = io.BytesIO()
        torch.save({"weight": Trap(mark)}, stream, _use_new_zipfile_serialization=zipped)
        found[name] = stream.getvalue()
    stream = io.BytesIO()
    np.save(stream, np.array([Trap(mark)], dtype=object), allow_pickle=True)
    found["npy"] = stream.getvalue()
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", found["protocol 2"])
    found["zip"] = stream.getvalue()
    return found


def test_the_trap_works(tmp_path: Path) -> None:
    """Otherwise the tests below would show nothing."""
    mark = tmp_path / "mark"
    pickle.loads(payloads(mark)["protocol 4"])
    assert mark.read_text() == "executed"


def test_pickles_by_name_are_refused_with_the_way_out(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    carriers = [(suffix, content) for suffix in UNTRUSTED for content in payloads(mark).values()]
    assert len(carriers) >= 100
    for suffix, content in carriers:
        folder = tmp_path / f"folder{suffix}"
        folder.mkdir(exist_ok=True)
        file = folder / f"pytorch_model{suffix}"
        file.write_bytes(content)
        for reference in (file, folder):
            with pytest.raises(
                CheckpointError, match=r"pytorch_model\.\w+: may run any code .*save_file\(torch.load\(file, we"
            ):
                load_part(Eye(), str(reference), "encoders.eye")
    assert not mark.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json", "weights"])
def test_pickles_under_another_name_are_refused(tmp_path: Path, name: str) -> None:
    mark = tmp_path / "mark"
    for content in payloads(mark).values():
        (tmp_path / name).write_bytes(content)
        for reference in (tmp_path, tmp_path / name):
            with pytest.raises(CheckpointError):
                find(str(reference))
    assert not mark.exists()


def test_pickles_in_a_checkpoint_are_refused(make_run: MakeRun, tmp_path: Path) -> None:
    """In each of its files, in place of the file and as one more."""
    mark = tmp_path / "mark"
    path = latest(make_run(3))
    for file in sorted(path.iterdir()):
        content = file.read_bytes()
        for payload in payloads(mark).values():
            file.write_bytes(payload)
            with pytest.raises(CheckpointError, match=file.name):
                verify(path)
            with pytest.raises(CheckpointError, match=file.name):
                open_run(path)
        file.write_bytes(content)
    (path / "data.pkl").write_bytes(payloads(mark)["protocol 4"])
    with pytest.raises(CheckpointError, match=r"data\.pkl: is not part of this checkpoint"):
        verify(path)
    assert not mark.exists()


def test_a_well_sealed_checkpoint_of_pickles_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Someone who writes the manifest too still gets nothing executed."""
    mark = tmp_path / "mark"
    for number, payload in enumerate(payloads(mark).values()):
        monkeypatch.setattr(
            "mmkit.checkpoint.tensors.write_file", lambda sink, tensors, metadata, payload=payload: sink.write(payload)
        )
        path = write(tmp_path / "run", number, **training_state(1), keep=1)
        verify(path)
        for load in (
            read(path).model,
            read(path).ema,
            read(path).optimizer,
            lambda path=path: read(path).part("heads.say"),
        ):
            with pytest.raises(CheckpointError, match=r"\.safetensors: "):
                load()
    assert not mark.exists()


def test_real_files(shared_data: Path) -> None:
    """A safetensors file and a pickle as others published them."""
    real = shared_data / "golden/taef2/io.safetensors"
    found, expected = find(str(real)), load_file(real)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    with pytest.raises(CheckpointError, match=r"taef2_decoder\.pth: may run any code"):
        find(str(shared_data / "taesd/taef2_decoder.pth"))
