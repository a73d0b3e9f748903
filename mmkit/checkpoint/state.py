"""A checkpoint as a value: what goes in, and what comes out again."""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmkit.checkpoint import directory, needs, tensors
from mmkit.checkpoint.disk import Folder, explained
from mmkit.checkpoint.manifest import MANIFEST, Manifest, Plugin, read_bounded, step_of, verify
from mmkit.compose.recipe import Recipe
from mmkit.errors import CheckpointError


def write(
    run: Path,
    step: int,
    *,
    model: Mapping[str, Tensor],
    ema: Mapping[str, Tensor] | None = None,
    optimizer: Mapping[str, Tensor] | None = None,
    trainer: dict[str, Any],
    recipe: str,
    plugins: Mapping[str, Plugin] | None = None,
    keep: int,
    max_shard_size: int = tensors.MAX_SHARD_SIZE,
) -> Path:
    """Writes one checkpoint and prunes those beyond the newest `keep`. Durable when it returns.

    `model` has names that start with their part's path; `ema` holds those of them that are averaged; `optimizer` comes
    from `flatten_optimizers`; `trainer` is anything that JSON gives back as it was; `recipe` is the resolved recipe, and
    `plugins` what it needs installed (`needs.used`).
    Only the process that holds the run's `lock` should call this. Raises `CheckpointError`; earlier checkpoints are then
    as they were.
    """
    assert step >= 0 and keep >= 1
    run = Path(run)
    stems = {"model": model, "ema": ema, "optimizer": optimizer}
    present = {stem: values for stem, values in stems.items() if values is not None}
    for stem, values in present.items():
        tensors.check(values, stem)
    rendered = _render(trainer)

    def fill(folder: Folder) -> None:
        for stem, values in present.items():
            tensors.save(folder, stem, values, max_shard_size)
        folder.text("trainer.json", rendered)
        folder.text("recipe.yaml", recipe)

    def describe(folder: Folder) -> Manifest:
        digest = hashlib.sha256(recipe.encode()).hexdigest()
        return Manifest(step, digest, folder.files, _versions(), dict(plugins or {}))

    path = directory.publish(run, step, fill, describe)
    directory.prune(run, step, keep)
    return path


def _render(trainer: dict[str, Any]) -> str:
    try:
        text = json.dumps(trainer, indent=1)
    except (TypeError, ValueError) as error:
        raise CheckpointError("trainer.json", f"cannot keep the trainer's state ({error})") from None
    if repr(json.loads(text)) != repr(trainer):  # repr, so that NaN equals itself and 1 is not 1.0
        raise CheckpointError(
            "trainer.json", "would not give the trainer's state back as it is", "keep plain lists, numbers and str keys"
        )
    return text


@functools.cache
def _versions() -> dict[str, str]:
    return {
        "mmkit": importlib.metadata.version("mmkit"),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk, opened lazily: each call reads what it names and no more."""

    path: Path
    manifest: Manifest

    @property
    def step(self) -> int:
        """Optimizer steps taken when it was written."""
        return self.manifest.step

    @property
    def recipe(self) -> str:
        """The resolved recipe's text."""
        return self._read("recipe.yaml").decode()

    def compose(self, overrides: Sequence[str] = ()) -> Recipe:
        """That recipe, composed, with overrides. Raises `CheckpointError` that names a distribution to install."""
        return needs.composed(self.path, self.manifest.plugins, overrides)

    @property
    def trainer(self) -> dict[str, Any]:
        """What the trainer gave to keep."""
        return json.loads(self._read("trainer.json"))

    def model(self) -> dict[str, Tensor]:
        """All parameters and buffers, by full name, tied ones under each of their names."""
        return self._stored("model").load()

    def ema(self) -> dict[str, Tensor] | None:
        """The averaged parameters, by full name; None where the run kept none. See `weights`."""
        return self._stored("ema").load() if self._has("ema") else None

    def optimizer(self) -> dict[str, Tensor] | None:
        """What `restore_optimizers` takes; None where there is none."""
        return self._stored("optimizer").load() if self._has("optimizer") else None

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors of one part (``encoders.eye``), under the names the part itself knows. Raises `CheckpointError`."""
        return self._take(prefix, averaged=False)

    def weights(self, prefix: str = "") -> dict[str, Tensor]:
        """What to sample with and to start other runs from: the averaged tensors, and the others where none are averaged.

        `prefix` takes one part, as in `part`.
        """
        return self._take(prefix, averaged=True)

    def _take(self, prefix: str, *, averaged: bool) -> dict[str, Tensor]:
        model = self._stored("model")
        start = f"{prefix}." if prefix else ""
        names = [name for name in model.names if name.startswith(start)]
        if not names:
            parts = sorted({".".join(name.split(".")[:2]) for name in model.names})
            near = difflib.get_close_matches(prefix, parts, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise CheckpointError(str(self.path), f"has no part {prefix!r}", f"{hint}it has {', '.join(parts)}")
        found = model.load(names)
        if averaged and self._has("ema"):
            found |= self._averaged(model, names)
        return {name.removeprefix(start): tensor for name, tensor in found.items()}

    def _averaged(self, model: tensors.Stored, names: list[str]) -> dict[str, Tensor]:
        """The averages of these names. One of several tied names may be the only one that is averaged."""
        ema = self._stored("ema")
        by_stored = {model.ties.get(name, name): name for name in ema.names}
        sources = {name: by_stored.get(model.ties.get(name, name)) for name in names}
        loaded = ema.load({source for source in sources.values() if source is not None})
        return {name: loaded[source] for name, source in sources.items() if source is not None}

    def _has(self, stem: str) -> bool:
        return bool({f"{stem}.safetensors", f"{stem}.safetensors.index.json"} & self.manifest.files.keys())

    def _stored(self, stem: str) -> tensors.Stored:
        return tensors.open_stem(self.path, stem)

    def _read(self, name: str) -> bytes:
        with explained(self.path / name, "cannot be read"):
            content = read_bounded(self.path / name)
        if hashlib.sha256(content).hexdigest() != self.manifest.files[name].sha256:
            raise CheckpointError(str(self.path / name), "is damaged: its bytes are not those that were written")
        return content


def read(path: Path) -> Checkpoint:
    """Opens a checkpoint whose files are all there. Their hashes are checked by `latest` and `verify`, not here.

    What it needs installed is checked by `compose`, not here. Raises `CheckpointError`.
    """
    path = Path(path)
    return Checkpoint(path, verify(path, deep=False))


def open_run(path: Path, step: int | None = None) -> Checkpoint:
    """The newest checkpoint of a run that verifies, or the one of `step`; or `path` itself where it is a checkpoint.

    All bytes are verified. Raises `CheckpointError` where there is none.
    """
    path = Path(path)
    if step is None and (step_of(path) is not None or (path / MANIFEST).exists()):
        verify(path)
        return read(path)
    known = [step_of(p) for p in directory.checkpoints(path)]
    if step is not None:
        if step not in known:
            steps = ", ".join(map(str, known)) or "none"
            raise CheckpointError(str(path), f"has no checkpoint of step {step}", f"its steps are: {steps}")
        return open_run(path / "checkpoints" / f"step-{step:08d}")
    found = directory.latest(path)
    if found is None:
        fact = "has no checkpoint that can be used" if known else "holds no checkpoint"
        raise CheckpointError(str(path), fact, "name a run folder that has been trained")
    return read(found)
