"""`weights:` on a part: finding the tensors it names, and loading them strictly or not at all."""

from __future__ import annotations

import copy
from pathlib import Path

from torch import Tensor, nn

from mmkit.checkpoint import tensors
from mmkit.checkpoint.reference import Reference, parse
from mmkit.checkpoint.state import open_run
from mmkit.contracts.part import Part
from mmkit.errors import CheckpointError

UNTRUSTED = (".bin", ".ckpt", ".h5", ".joblib", ".msgpack", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth", ".th")
_PICKLE = "may run any code when it is loaded (it is a pickle, or a format that can hold one), so it is not opened"
_CONVERT = (
    "convert it once, where you trust it: "
    "safetensors.torch.save_file(torch.load(file, weights_only=True), 'model.safetensors')"
)


def load_part(module: nn.Module, reference: str, path: str) -> None:
    """Loads the weights a reference names into the part at `path` of the recipe (``encoders.eye``).

    Of a run, the part of the same path unless the reference names another, averaged weights where the run kept them. What
    others published goes through the part's `from_published`.
    Raises one `CheckpointError` with all names that are missing, unexpected, or of another shape or kind; the module is
    then as it was.
    """
    found = find(reference, path)
    if isinstance(module, Part) and parse(reference).kind != "run" and found.keys() != module.state_dict().keys():
        found = module.from_published(found)
    alone = _self_loading(module)
    _compare(module, found, alone, reference, path)
    if alone:
        # Only such a module knows what it accepts, and may refuse halfway: it is asked on a copy first.
        _load(copy.deepcopy(module), found, reference, path)
    _load(module, found, reference, path)


def find(reference: str, path: str = "") -> dict[str, Tensor]:
    """The tensors a reference names, under the names the part itself knows. Raises `CheckpointError`."""
    place = parse(reference)
    if place.kind == "run":
        return open_run(Path(place.where)).weights(place.part or path)
    stored = _in_hub(place) if place.kind == "hub" else _in_folder(Path(place.where))
    start = f"{place.part}." if place.part else ""
    names = [name for name in stored.names if name.startswith(start)]
    if not names:
        some = tensors.listed(sorted(stored.names)) or "none"
        raise CheckpointError(str(stored.place), f"has no tensor under {place.part!r}", f"its names are: {some}")
    return {name.removeprefix(start): tensor for name, tensor in stored.load(names).items()}


def _in_folder(path: Path) -> tensors.Stored:
    """The tensors of a safetensors file, of an index and its shards, or of a folder that holds either."""
    if path.suffix in UNTRUSTED and not path.is_dir():
        raise CheckpointError(str(path), _PICKLE, _CONVERT)
    root = _root(path if path.is_dir() else path.parent)
    if path.name.endswith(".safetensors.index.json"):
        return tensors.open_index(path, root)
    if path.suffix == ".safetensors" and not path.is_dir():
        return tensors.open_files([path], root)
    if not path.is_dir():
        raise CheckpointError(str(path), "does not exist", "name a folder with *.safetensors, a run, or hf://org/name")
    files, indices = sorted(path.glob("*.safetensors")), sorted(path.glob("*.safetensors.index.json"))
    if len(indices) > 1:
        names = ", ".join(index.name for index in indices)
        raise CheckpointError(str(path), f"holds several checkpoints: {names}", "name one of these files")
    if indices:
        return tensors.open_index(indices[0], root)
    if files:
        return tensors.open_files(files, root)
    pickles = [file.name for file in sorted(path.iterdir()) if file.suffix in UNTRUSTED]
    if pickles:
        raise CheckpointError(str(path / pickles[0]), _PICKLE, _CONVERT)
    raise CheckpointError(str(path), "holds no *.safetensors", "name a folder that does, or a run")


def _root(folder: Path) -> Path:
    """What links in a folder may lead to: itself, and in the Hub's cache the blobs that lie beside its snapshots."""
    actual = folder.resolve()
    return next((parent.parent for parent in actual.parents if parent.name == "snapshots"), actual)


def _in_hub(place: Reference) -> tensors.Stored:
    """The tensors of a repository in the local cache; nothing is downloaded behind the user's back."""
    import huggingface_hub
    from huggingface_hub.utils import LocalEntryNotFoundError

    revision = f" --revision {place.revision}" if place.revision else ""
    try:
        snapshot = huggingface_hub.snapshot_download(
            place.where, revision=place.revision or None, local_files_only=True
        )
    except LocalEntryNotFoundError:
        raise CheckpointError(
            f"hf://{place.where}",
            "is not in the local Hugging Face cache",
            f"run `hf download {place.where}{revision}`",
        ) from None
    except ValueError as error:
        raise CheckpointError(f"hf://{place.where}", f"is not a usable name ({error})") from None
    return _in_folder(Path(snapshot) / place.folder)


def _compare(module: nn.Module, found: dict[str, Tensor], alone: set[str], reference: str, path: str) -> None:
    expected = module.state_dict()
    assert not any(tensor.is_meta for tensor in expected.values()), f"{path} has no memory yet"
    mine = {name for name in expected.keys() | found.keys() if name.rpartition(".")[0] not in alone}
    missing = sorted(mine & (expected.keys() - found.keys()))
    unexpected = sorted(mine & (found.keys() - expected.keys()))
    other = [
        f"{name} ({_describe(found[name])} in the checkpoint, {_describe(expected[name])} in the part)"
        for name in sorted(mine & expected.keys() & found.keys())
        if found[name].shape != expected[name].shape
        or found[name].is_floating_point() != expected[name].is_floating_point()
    ]
    lists = {"missing": missing, "unexpected": unexpected, "of another shape or kind": other}
    facts = [f"{len(names)} {what}: {tensors.listed(names)}" for what, names in lists.items() if names]
    if facts:
        raise CheckpointError(
            path, "\n  ".join([f"the weights of {reference} do not fit, and nothing was loaded:", *facts]),
            "give the part the options it was trained with, or name another part after `#`",
        )  # fmt: skip


def _load(module: nn.Module, found: dict[str, Tensor], reference: str, path: str) -> None:
    try:
        module.load_state_dict(found)
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(path, f"the weights of {reference} do not fit ({error})") from error


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _self_loading(module: nn.Module) -> set[str]:
    """The submodules that load their own tensors in their own way: a sentencepiece model is a buffer of any length."""
    return {
        name
        for name, child in module.named_modules()
        if child._load_state_dict_pre_hooks
        or not type(child)._load_from_state_dict.__module__.startswith("torch.")
        or (child is module and not type(child).load_state_dict.__module__.startswith("torch."))
    }
