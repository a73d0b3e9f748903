"""A checkpoint gives back what went in."""

from __future__ import annotations

import ast
import importlib.metadata
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from states import RECIPE, same_tensors, training_state

import mmkit.checkpoint
from mmkit.checkpoint import latest, open_run, read, verify, write
from mmkit.errors import CheckpointError

MakeRun = Callable[..., Path]


@pytest.mark.parametrize("limit", [10**9, 100])
def test_all_of_it_comes_back(tmp_path: Path, limit: int) -> None:
    """In one file and in shards."""
    state = training_state(5)
    path = write(tmp_path / "run", 5, **state, keep=1, max_shard_size=limit)
    assert path == latest(tmp_path / "run") == tmp_path / "run/checkpoints/step-00000005"
    assert (path / "model.safetensors.index.json").exists() == (limit == 100)
    checkpoint = read(path)
    assert same_tensors(checkpoint.model(), state["model"])
    assert same_tensors(checkpoint.ema(), state["ema"])
    assert same_tensors(checkpoint.optimizer(), state["optimizer"])
    assert (checkpoint.trainer, checkpoint.recipe, checkpoint.step) == (state["trainer"], RECIPE, 5)


def test_what_is_not_there_is_none(tmp_path: Path) -> None:
    path = write(tmp_path, 0, model={"heads.a.w": torch.ones(1)}, trainer={}, recipe="", keep=1)
    assert read(path).ema() is None and read(path).optimizer() is None and read(path).step == 0
    assert same_tensors(read(path).weights(), {"heads.a.w": torch.ones(1)})


def test_one_part(make_run: MakeRun) -> None:
    """Under its own names; a tensor that another part stores is found too."""
    checkpoint = read(latest(make_run(3)))
    model = training_state(3)["model"]
    assert checkpoint.part("heads.say").keys() == {"out.weight"}
    assert torch.equal(checkpoint.part("heads.say")["out.weight"], model["connectors.text.table"])
    assert checkpoint.part("encoders.eye").keys() == {"conv.weight", "seen"}
    with pytest.raises(
        CheckpointError, match=r"has no part 'encoders.ey'. did you mean 'encoders.eye'\? it has backbone"
    ):
        checkpoint.part("encoders.ey")


def test_averages_stand_in_for_every_tied_name(make_run: MakeRun) -> None:
    """Only one of two tied names is averaged (a parameter has one name); buffers are not averaged at all."""
    checkpoint, state = read(latest(make_run(3))), training_state(3)
    averaged = state["ema"]["connectors.text.table"]
    weights = checkpoint.weights()
    assert weights.keys() == state["model"].keys()
    assert torch.equal(weights["connectors.text.table"], averaged) and torch.equal(
        weights["heads.say.out.weight"], averaged
    )
    assert torch.equal(weights["encoders.eye.seen"], state["model"]["encoders.eye.seen"])
    assert torch.equal(checkpoint.weights("heads.say")["out.weight"], averaged)
    assert not torch.equal(checkpoint.part("heads.say")["out.weight"], averaged)


def test_a_damaged_small_file_is_found_without_a_deep_check(make_run: MakeRun) -> None:
    path = latest(make_run(3))
    content = (path / "trainer.json").read_text()
    (path / "trainer.json").write_text(content.replace("3", "4", 1))
    with pytest.raises(CheckpointError, match=r"trainer\.json: is damaged"):
        read(path).trainer  # noqa: B018


@pytest.mark.parametrize(
    "trainer",
    [{1: 2}, {"a": (1, 2)}, {"a": {2, 3}}, {"a": torch.ones(1)}, {"a": b""}, {"a": object()}],
    ids=["number", "tuple", "set", "tensor", "bytes", "object"],
)
def test_a_trainers_state_that_json_would_change_is_refused(tmp_path: Path, trainer: dict) -> None:
    with pytest.raises(CheckpointError, match=r"trainer\.json"):
        write(tmp_path / "run", 1, model={"a.w": torch.ones(1)}, trainer=trainer, recipe="", keep=1)
    assert not (tmp_path / "run").exists()


def test_infinities_come_back(tmp_path: Path) -> None:
    path = write(tmp_path, 1, model={}, trainer={"best": float("inf"), "loss": float("nan")}, recipe="", keep=1)
    assert repr(read(path).trainer) == "{'best': inf, 'loss': nan}"


def test_open_run(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(1, 2, 3)
    assert open_run(run).step == 3 and open_run(run, 2).step == 2
    assert open_run(run / "checkpoints/step-00000001").step == 1
    with pytest.raises(CheckpointError, match=r"has no checkpoint of step 7. its steps are: 1, 2, 3"):
        open_run(run, 7)
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        open_run(tmp_path / "nothing")
    (run / "checkpoints/step-00000003/model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: is missing"):
        open_run(run, 3)
    with pytest.warns(UserWarning, match=r"skipped a damaged checkpoint: .*model\.safetensors: is missing"):
        assert open_run(run).step == 2
    for step in (1, 2):
        (run / f"checkpoints/step-0000000{step}/manifest.json").unlink()
    with pytest.warns(UserWarning), pytest.raises(CheckpointError, match="has no checkpoint that can be used"):
        open_run(run)


def test_what_wrote_it_is_noted(make_run: MakeRun) -> None:
    manifest = verify(latest(make_run(1)))
    assert manifest.versions["torch"] == torch.__version__
    assert manifest.versions["mmkit"] == importlib.metadata.version("mmkit")
    assert manifest.plugins == {}


def test_no_pickle_and_no_torch_load_in_the_code() -> None:
    for file in Path(mmkit.checkpoint.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                imported = {alias.name for alias in node.names} | {getattr(node, "module", "")}
                assert not imported & {"pickle", "shelve", "marshal", "dill", "cloudpickle"}, file
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) not in {("torch", "load"), ("torch", "save"), ("np", "load")}, file


def test_references_and_verification_need_no_torch() -> None:
    """`mmkit check` reads references, and listing runs verifies them, without the wait for torch."""
    code = "import sys; from mmkit.checkpoint import parse, verify, latest, lock; parse('a#b'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert set(mmkit.checkpoint.__all__) == set(mmkit.checkpoint._WHERE)
    assert all(getattr(mmkit.checkpoint, name) for name in mmkit.checkpoint.__all__)
