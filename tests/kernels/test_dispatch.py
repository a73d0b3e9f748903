"""Which implementation of an op runs: what is named runs, or is refused; nothing takes another's place in silence."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmkit import registry
from mmkit.compose import loads, render
from mmkit.contracts.segment import Sample, Segment
from mmkit.errors import ContractError, PluginError, RecipeError
from mmkit.evaluate.judging import evaluate, subject_of, tasks_of
from mmkit.kernels import dispatch
from mmkit.kernels.dispatch import Limits, Site, choose, kernel, using
from mmkit.kernels.vq import nearest_code
from mmkit.model import UnifiedModel
from mmkit.registry import OPS, Entry, Registry
from mmkit.train import train

CPU = Site("cpu", torch.float32)


@kernel(devices=("cuda",), dtypes=("float32", "bfloat16"), capability=(8, 0), forward_only=("cuda",))
def narrow(x: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Runs almost nowhere."""
    return x[:, 0].long()


@kernel()
def failing(x: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Fails."""
    raise ZeroDivisionError("by zero")


@kernel()
def last(x: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Always finds the last code."""
    return torch.full((len(x),), len(codes) - 1)


def unmarked(x: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Does not say where it runs."""
    return x


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """The installed registry, and the kernels above."""
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)
    installed = registry.load()
    names = ("narrow", "failing", "last", "unmarked")
    more = [Entry("kernel", f"nearest_code.{n}", f"{__name__}:{n}", "mmkit-odd", "1") for n in names]
    found = replace(installed, kernels={**installed.kernels, **{e.name: e for e in more}})
    monkeypatch.setattr(registry, "load", lambda: found)
    return found


def test_limits_say_what_is_missing() -> None:
    limits = narrow.limits
    assert limits.refusal(Site("cpu")) == "runs on cuda, and this is cpu"
    assert limits.refusal(Site("cuda", torch.float64)) == "takes float32 and bfloat16, and this is float64"
    assert (
        limits.refusal(Site("cuda", None, False, (7, 5)))
        == "needs a GPU of compute capability 8.0, and this one has 7.5"
    )
    assert limits.refusal(Site("cuda", torch.bfloat16, True, (9, 0))) == "gives no gradients on cuda"
    assert limits.refusal(Site("cuda", torch.bfloat16, False, (9, 0))) == ""
    assert Limits().refusal(Site("meta", torch.int8, True)) == ""
    assert Limits().refusal(Site("cpu", window=True)) == "knows no sliding windows"
    assert Limits(windows=True).refusal(Site("cpu", window=True)) == ""


def test_gradients_are_wanted_where_they_can_be_had() -> None:
    x, y = torch.zeros(1), torch.zeros(1, requires_grad=True)
    assert not Site.of(x).backward and Site.of(x, y).backward
    with torch.no_grad():
        assert not Site.of(x, y).backward


def test_the_environment_goes_before_the_recipe_and_the_recipe_before_mmkit(monkeypatch: pytest.MonkeyPatch) -> None:
    def name(named: str = "auto") -> str:
        return choose("nearest_code", CPU, "chunked", "", named=named).name

    assert name() == "chunked"
    with using({"nearest_code": "reference"}):
        assert name() == "reference"
        with using({"attention": "dense"}):
            assert name() == "reference"
        monkeypatch.setenv(dispatch.VARIABLE, " attention=dense , nearest_code = last,")
        assert name() == "last"
        assert name("reference") == "reference"
        monkeypatch.setenv(dispatch.VARIABLE, "nearest_code=auto")
        assert name() == "chunked"
        monkeypatch.setenv(dispatch.VARIABLE, "nearest_code=mmkit/reference")
        assert name() == "mmkit/reference"
    monkeypatch.delenv(dispatch.VARIABLE)
    assert name() == "chunked"


def test_what_is_named_is_what_runs() -> None:
    x, codes = torch.randn(5, 3), torch.randn(4, 3)
    with using({"nearest_code": "last"}):
        assert nearest_code(x, codes).tolist() == [3] * 5


def test_what_does_not_run_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with using({"nearest_code": "narrow"}), pytest.raises(
        ContractError, match=r"^kernels\.nearest_code: the kernel 'narrow' of nearest_code runs on cuda, and this is cpu\."
    ):  # fmt: skip
        nearest_code(torch.randn(5, 3), torch.randn(4, 3))
    monkeypatch.setenv(dispatch.VARIABLE, "nearest_code=narrow")
    with pytest.raises(ContractError, match=r"^MMKIT_KERNELS=nearest_code=narrow: .* takes another: auto, chunked"):
        nearest_code(torch.randn(5, 3), torch.randn(4, 3))


def test_what_fails_says_which_kernel_it_was_and_nothing_takes_its_place() -> None:
    with using({"nearest_code": "failing"}), pytest.raises(ZeroDivisionError) as caught:
        nearest_code(torch.randn(5, 3), torch.randn(4, 3))
    assert caught.value.__notes__[0].startswith(
        "in the kernel 'failing' of mmkit-odd for nearest_code; `MMKIT_KERNELS="
    )


def test_a_kernel_must_say_where_it_runs() -> None:
    with pytest.raises(PluginError, match="does not say where it runs"):
        dispatch.load("nearest_code", "unmarked")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "nearest_code=chunkd",
            r"^MMKIT_KERNELS: no installed package provides.*did you mean 'chunked'\? known for nearest_code: chunked, ",
        ),
        (
            "attenton=dense",
            r"^MMKIT_KERNELS: mmkit has no op 'attenton'\. did you mean 'attention'\? ops are attention, ",
        ),
        ("attenton=auto", r"^MMKIT_KERNELS: mmkit has no op 'attenton'"),
        ("dense", r"^MMKIT_KERNELS: 'dense' names no implementation\. write `op=implementation`"),
        ("attention=", r"^MMKIT_KERNELS: 'attention=' names no implementation"),
        ("attention=dense,attention=flex", r"^MMKIT_KERNELS: 'attention' is written twice"),
        ("all=tritn", r"^MMKIT_KERNELS: no op has an implementation 'tritn'\. `mmkit list kernel`"),
        ("all=triton", r"^MMKIT_KERNELS=all=triton: the kernel '\w+' of \w+ runs on cuda, and this is cpu"),
    ],
)
def test_the_environment_is_read_strictly(text: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(dispatch.VARIABLE, text)
    with pytest.raises((ContractError, PluginError), match=message):
        nearest_code(torch.randn(5, 3), torch.randn(4, 3))  # a mistake about any op is one wherever an op runs


def test_all_names_the_implementations_of_every_op_but_those_named_by_themselves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(dispatch.VARIABLE, "nearest_code=chunked,all=reference")
    found = {op: dispatch.choose(op, Site("cpu"), "none", "none").name for op in OPS}
    assert found == {op: "chunked" if op == "nearest_code" else "reference" for op in OPS}


def test_the_choice_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    _forget()
    with caplog.at_level(logging.INFO, "mmkit"):
        for _ in range(2):
            nearest_code(torch.randn(5, 3), torch.randn(4, 3))
        with using({"nearest_code": "reference"}):
            nearest_code(torch.randn(5, 3), torch.randn(4, 3))
    assert [record.getMessage() for record in caplog.records] == [
        "nearest_code on cpu: chunked (it runs everywhere, and holds no table of all scores)",
        "nearest_code on cpu: reference (kernels.nearest_code)",
    ]


RECIPE = """
model:
  tokenizers: {text: {type: bytes}}
  backbone: {type: dense, depth: 1, dim: 16, num_heads: 2}
  heads: {say: {type: ar}}
  streams: {text: {modality: text, from: text, head: say}}
train: {steps: 1}
"""


TOKENIZER = """
model:
  tokenizers: {pixels: {type: vq, codebook_size: 8, stride: 4, base_dim: 8, num_res_blocks: 1, multipliers: [1, 1, 1]}}
data: [{type: shapes, size: 24, tasks: [generate]}]
train: {steps: 1, batch_samples: 2}
kernels: {nearest_code: reference}
"""


def test_a_recipe_names_kernels(known: Registry) -> None:
    recipe = loads(RECIPE + "kernels: {attention: dense, nearest_code: auto}\n", registry=known)
    assert recipe.kernels == {"attention": "dense", "nearest_code": "auto"}
    again = loads(render(recipe), registry=known)
    assert again == recipe and "\nkernels:\n  attention: dense\n" in recipe.text
    assert "kernels" not in loads(RECIPE, registry=known).text
    assert loads(RECIPE, ["kernels.attention=flex"], registry=known).kernels == {"attention": "flex"}


def test_mistakes_stand_at_their_lines(known: Registry) -> None:
    text = RECIPE + "kernels:\n  attention: dens\n  nearest: reference\n  nearest_code: [1]\n"
    with pytest.raises(RecipeError) as caught:
        loads(text, registry=known)
    found = [(p.line, p.place, p.rule) for p in caught.value.problems]
    assert found == [(11, "kernels.nearest_code", "type.wrong")]
    with pytest.raises(RecipeError) as caught:
        loads(text.replace("  nearest_code: [1]\n", ""), registry=known)
    found = [(p.line, p.place, p.rule) for p in caught.value.problems]
    assert found == [(9, "kernels.attention", "part.unknown"), (10, "kernels.nearest", "key.unknown")]


def test_a_model_runs_by_the_kernels_of_its_recipe(caplog: pytest.LogCaptureFixture, known: Registry) -> None:
    losses = {}
    sample = Sample("s", (Segment("text", "what is seen", "target"),))
    for name in ("batches", "dense", "reference"):
        model = UnifiedModel(loads(RECIPE, [f"kernels.attention={name}"], registry=known))
        _forget()
        with caplog.at_level(logging.INFO, "mmkit"):
            (batch,) = model.batches([sample], step=0, budget=100)
            losses[name] = model(batch).heads["say"].value_S
        assert f"attention on cpu: {name} (kernels.attention)" in _said(caplog)
    # float32: three orders of summation
    torch.testing.assert_close(losses["dense"], losses["batches"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(losses["reference"], losses["batches"], rtol=1e-5, atol=1e-6)


def test_what_is_computed_again_runs_by_the_same_kernels(caplog: pytest.LogCaptureFixture, known: Registry) -> None:
    model = UnifiedModel(loads(RECIPE, ["kernels.norm=reference"], registry=known))
    model.backbone.recompute = True
    (batch,) = model.batches([Sample("s", (Segment("text", "what is seen", "target"),))], step=0, budget=100)
    loss = model(batch).heads["say"].value_S.sum()
    _forget()
    with caplog.at_level(logging.INFO, "mmkit"):
        caplog.clear()
        loss.backward()
    assert {said for said in _said(caplog) if said.startswith("norm")} == {"norm on cpu: reference (kernels.norm)"}


# The kernels above are known to this file alone, and their module is loaded.
@pytest.mark.filterwarnings("ignore:.*which is not installed")
def test_training_and_judging_go_by_them_too(caplog: pytest.LogCaptureFixture, known: Registry, tmp_path: Path) -> None:
    recipe = loads(TOKENIZER, registry=known)
    _forget()
    with caplog.at_level(logging.INFO, "mmkit"):
        train(recipe, tmp_path / "run", quiet=True, device="cpu")
        assert _said(caplog) == {"nearest_code on cpu: reference (kernels.nearest_code)"}
        assert "\nkernels:\n  nearest_code: reference\n" in (tmp_path / "run" / "recipe.yaml").read_text()
        _forget()
        caplog.clear()
        subject = subject_of(tmp_path / "run", 2)
        evaluate(subject, tasks_of(subject.recipe))
        assert _said(caplog) == {"nearest_code on cpu: reference (kernels.nearest_code)"}


def _said(caplog: pytest.LogCaptureFixture) -> set[str]:
    return {r.getMessage() for r in caplog.records if r.name == dispatch.__name__}


def _forget() -> None:
    """As if nothing had been chosen yet."""
    dispatch._say_once.cache_clear()
    dispatch._key_under.cache_clear()
    dispatch._made_under.cache_clear()


def test_a_choice_is_a_constant_to_the_compiler() -> None:
    def nearest(x: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        return dispatch.choose_for("nearest_code", "reference", "for this test", x, codes)(x, codes) + 1

    x, codes = torch.randn(9, 4), torch.randn(5, 4)
    compiled = torch.compile(nearest, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, codes), nearest(x, codes))
