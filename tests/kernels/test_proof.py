"""Kernels that must prove themselves before mmkit chooses them: on the CPU as if it were a GPU, with kernels made up for it."""

from __future__ import annotations

import json
import logging
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from mmkit import registry
from mmkit.kernels import dispatch, proof, verdicts
from mmkit.kernels.dispatch import Site, choose, choose_for, kernel, using
from mmkit.kernels.experts.reference import grouped_linear as reference
from mmkit.kernels.trial import Trial
from mmkit.registry import Entry, Registry

pytest.importorskip("triton", reason="triton is not installed: it comes with torch on Linux only")

OP = "grouped_linear"
TRIALS = f"{__name__}:trials"
GPU = Site("cpu", torch.float32, False, (9, 0))
LEARNING = replace(GPU, backward=True)
ran: Counter[str] = Counter()
seen: list[dict[str, Any]] = []


def trials() -> Iterator[Trial]:
    """One."""
    generator = torch.Generator().manual_seed(0)
    shapes = (9, 16), (2, 8, 16)
    inputs = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    yield Trial("nine rows", (*inputs, torch.tensor([4, 5])), lambda f, *given: f(*given, None))


@kernel(trials=TRIALS)
def right(x_AD: Tensor, weight_GND: Tensor, load_G: Tensor, bias_GN: None = None) -> Tensor:
    """Is right, counts its runs and notes what it runs in."""
    ran["right"] += 1
    seen.append(
        {
            "autocast": torch.is_autocast_enabled("cpu"),
            "inference": torch.is_inference_mode_enabled(),
            "grad": torch.is_grad_enabled(),
            "fake": type(x_AD).__name__,
            "thread": threading.current_thread().name,
        }
    )
    return reference(x_AD, weight_GND, load_G, None)


@kernel(trials=TRIALS)
def off(x_AD: Tensor, weight_GND: Tensor, load_G: Tensor, bias_GN: None = None) -> Tensor:
    """Has one number that is a little off, as at the edge of a tile."""
    ran["off"] += 1
    out = reference(x_AD, weight_GND, load_G, None).clone()
    out[-1, -1] += 1e-3
    return out


@kernel(trials=TRIALS)
def unwritten(x_AD: Tensor, weight_GND: Tensor, load_G: Tensor, bias_GN: None = None) -> Tensor:
    """Leaves a NaN."""
    out = reference(x_AD, weight_GND, load_G, None).clone()
    out[0, 0] = float("nan")
    return out


@kernel(trials=TRIALS)
def unsteady(x_AD: Tensor, weight_GND: Tensor, load_G: Tensor, bias_GN: None = None) -> Tensor:
    """Differs in the last bit every time."""
    ran["unsteady"] += 1
    return reference(x_AD, weight_GND, load_G, None) * (1 + ran["unsteady"] * torch.finfo(x_AD.dtype).eps)


@kernel(trials=TRIALS)
def wide(x_AD: Tensor, weight_GND: Tensor, load_G: Tensor, bias_GN: None = None) -> Tensor:
    """Gives another dtype."""
    return reference(x_AD, weight_GND, load_G, None).double()


@kernel(trials=TRIALS)
def astray(x_AD: Tensor, weight_GND: Tensor, load_G: Tensor, bias_GN: None = None) -> Tensor:
    """Is right but for a gradient."""
    return reference(x_AD, weight_GND + 0.1 * (weight_GND - weight_GND.detach()), load_G, None)


@kernel(trials=TRIALS)
def raising(x_AD: Tensor, weight_GND: Tensor, load_G: Tensor, bias_GN: None = None) -> Tensor:
    """Does not compile."""
    ran["raising"] += 1
    raise ValueError("no\nsuch instruction")


@kernel(trials=TRIALS)
def hungry(x_AD: Tensor, weight_GND: Tensor, load_G: Tensor, bias_GN: None = None) -> Tensor:
    """Finds no memory."""
    ran["hungry"] += 1
    raise torch.OutOfMemoryError("all of it is taken")


@kernel(dtypes=("float16",), forward_only=("cpu",), trials=TRIALS)
def narrow(x_AD: Tensor, weight_GND: Tensor, load_G: Tensor, bias_GN: None = None) -> Tensor:
    """Runs in float16 without gradients."""
    ran["narrow"] += 1
    return reference(x_AD, weight_GND, load_G, None)


@torch.library.custom_op("mmkit_proof_test::product", mutates_args=())
def product(x: Tensor, weight: Tensor, load: Tensor) -> Tensor:
    ran["product"] += 1
    return reference(x, weight, load, None).clone()


@product.register_fake
def _(x: Tensor, weight: Tensor, load: Tensor) -> Tensor:
    return x.new_empty(len(x), weight.shape[1])


@kernel(trials=TRIALS)
def custom(x_AD: Tensor, weight_GND: Tensor, load_G: Tensor, bias_GN: None = None) -> Tensor:
    """An op of its own, as Triton kernels are."""
    return product(x_AD, weight_GND, load_G)


NAMES = ("right", "off", "unwritten", "unsteady", "wide", "astray", "raising", "hungry", "narrow", "custom")


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The kernels above are known, nothing is proved yet, and the CPU counts as a GPU."""
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    installed = registry.load()
    more = [Entry("kernel", f"{OP}.{n}", f"{__name__}:{n}", "mmkit", "1") for n in NAMES]
    found: Registry = replace(installed, kernels={**installed.kernels, **{e.name: e for e in more}})
    monkeypatch.setattr(registry, "load", lambda: found)
    monkeypatch.setattr(proof, "possible", lambda device, capability: capability >= proof.CAPABILITY)
    monkeypatch.setattr(dispatch, "capability", lambda device: (9, 0))
    forget()
    ran.clear()
    seen.clear()
    yield
    forget()


def forget() -> None:
    """As if the process had just begun."""
    proof._known.clear()
    for cached in (dispatch._key_under, dispatch._say_once, dispatch._warn_once, verdicts._say_once):
        cached.cache_clear()


def name(wanted: str, site: Site = GPU, plain: str = "reference") -> str:
    return choose(OP, site, (wanted, plain), "plain torch").name


def files(folder: Path) -> list[Path]:
    return sorted((folder / "mmkit").iterdir())


def said(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == level and r.name.startswith("mmkit.kernels")]


def test_what_is_right_is_chosen_and_its_figures_are_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "mmkit"):
        assert name("right") == name("right") == "right"
    assert ran["right"] == 2  # once, and once more for the same bits
    first, second = said(caplog, logging.INFO)
    assert (
        first.startswith("grouped_linear=right in float32 has proved itself in ")
        and "1 results, off by at most 0." in first
    )
    assert second == "grouped_linear on cpu: right (it has proved itself on this GPU)"
    assert not said(caplog, logging.WARNING)


@pytest.mark.parametrize(
    ("wanted", "fact"),
    [
        ("off", "nine rows: output 0 has a largest error of 0.001, and reference has "),
        ("unwritten", "nine rows: output 0 is not finite everywhere"),
        ("unsteady", "nine rows: output 0 is not the same bits a second time"),
        ("wide", "nine rows: output 0 is torch.float64 [9, 8]"),
        ("raising", "it raises ValueError: no such instruction"),
    ],
)
def test_what_is_wrong_is_left_out_with_a_warning(wanted: str, fact: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "mmkit"):
        assert name(wanted) == name(wanted) == "reference"
    (warning,) = said(caplog, logging.WARNING)
    assert warning.startswith(
        f"grouped_linear on cpu in float32: reference, since {wanted} has failed its proof: {fact}"
    )
    assert f"`MMKIT_KERNELS=grouped_linear={wanted}` forces it" in warning
    assert "`MMKIT_KERNELS=grouped_linear=reference` silences" in warning
    assert said(caplog, logging.INFO) == [
        f"grouped_linear on cpu: reference (plain torch; {wanted} has failed its proof)"
    ]


def test_gradients_are_proved_where_they_are_wanted(caplog: pytest.LogCaptureFixture) -> None:
    assert name("astray") == "astray"
    with caplog.at_level(logging.INFO, "mmkit"):
        assert name("astray", LEARNING) == "reference"
    (warning,) = said(caplog, logging.WARNING)
    assert "in float32 with gradients: " in warning and "the gradient of input 1 has a " in warning
    assert name("right", LEARNING) == "right" and seen[-1]["grad"]


def test_half_types_are_measured_by_the_plain_kernel_in_them() -> None:
    # 1e-3 is less than what rounding to bfloat16 does, and more than float32 may be off.
    assert name("off", replace(GPU, dtype=torch.bfloat16)) == "off"
    assert name("off", replace(GPU, dtype=torch.float32)) == "reference"


def test_what_does_not_run_at_a_site_is_not_proved(monkeypatch: pytest.MonkeyPatch) -> None:
    assert name("narrow") == name("narrow", replace(LEARNING, dtype=torch.float16)) == "reference"
    assert name("narrow", replace(GPU, capability=(7, 5), dtype=torch.float16)) == "reference"
    assert name("narrow", replace(GPU, dtype=None)) == "reference"
    assert not ran
    assert name("narrow", replace(GPU, dtype=torch.float16)) == "narrow"


def test_there_are_proofs_on_nvidia_gpus_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert proof.possible("cuda", (8, 0)) and proof.possible("cuda", (12, 0))
    assert not proof.possible("cuda", (7, 5)) and not proof.possible("cpu", (0, 0))
    monkeypatch.setattr(torch.version, "hip", "6.2")
    assert not proof.possible("cuda", (9, 4))


def test_a_kernel_that_is_named_runs_without_a_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, load = torch.randn(3, 4), torch.randn(1, 2, 4), torch.tensor([3])

    def run() -> None:
        choose_for(OP, ("right", "reference"), "plain torch", x, weight)(x, weight, load, None)

    with using({OP: "raising"}), pytest.raises(ValueError, match="no\nsuch instruction"):
        run()
    monkeypatch.setenv(dispatch.VARIABLE, f"{OP}=reference")
    run()
    assert ran == {"raising": 1}
    monkeypatch.setenv(dispatch.VARIABLE, f"{OP}=auto")
    run()
    assert ran["right"] == 3


def test_verdicts_are_remembered_on_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert name("right") == "right" and name("off") == "reference"
    (path,) = files(tmp_path)
    kept = json.loads(path.read_text())
    assert kept["conditions"]["torch"] == torch.__version__
    assert {k: v["passed"] for k, v in kept["verdicts"].items()} == {
        "grouped_linear=right in float32": True, "grouped_linear=off in float32": False,
    }  # fmt: skip
    before = dict(ran)
    forget()
    caplog.clear()
    with caplog.at_level(logging.INFO, "mmkit"):
        assert name("right") == "right" and name("off") == "reference"
    assert ran == before
    assert len(said(caplog, logging.WARNING)) == 1  # by every process, that of the failed one
    assert name("right", LEARNING) == "right" and ran["right"] == 4


def test_what_raises_is_tried_again_by_the_next_process(tmp_path: Path) -> None:
    for runs in (1, 2):
        assert name("raising") == name("raising") == "reference" and ran["raising"] == runs
        forget()
    assert not (tmp_path / "mmkit").exists()


def test_other_versions_are_proved_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert name("right") == "right"
    conditions = verdicts.conditions(torch.device("cpu"))
    monkeypatch.setattr(verdicts, "conditions", lambda device: {**conditions, "driver": "another"})
    forget()
    assert name("right") == "right" and ran["right"] == 4 and len(files(tmp_path)) == 2


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"form": 1}', '{"form": 0, "conditions": {}, "verdicts": {}}', "\udcff"]
)
def test_a_broken_file_is_said_once_and_written_anew(
    text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert name("right") == "right"
    (path,) = files(tmp_path)
    path.write_bytes(text.encode(errors="surrogateescape"))
    forget()
    with caplog.at_level(logging.INFO, "mmkit"):
        assert name("right") == "right" and ran["right"] == 4
    (warning,) = said(caplog, logging.WARNING)
    assert warning.startswith("what is known of kernels on this machine cannot be read, and is found out again: ")
    forget()
    assert name("right") == "right" and ran["right"] == 4 and files(tmp_path) == [path]


def test_a_verdict_of_another_form_is_none(tmp_path: Path) -> None:
    assert name("right") == "right"
    (path,) = files(tmp_path)
    path.write_text(path.read_text().replace("true", '"yes"'))
    forget()
    assert name("right") == "right" and ran["right"] == 4


def test_a_folder_that_cannot_be_written_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with caplog.at_level(logging.INFO, "mmkit"):
        assert name("right") == "right" and name("right", LEARNING) == "right"
    facts = [w.partition(":")[0] for w in said(caplog, logging.WARNING)]
    assert facts == [
        "what is known of kernels on this machine cannot be read, and is found out again",
        "what is known of kernels on this machine is not kept, and the next process finds it out again",
    ]


def test_without_memory_it_is_plain_for_this_process(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "mmkit"):
        assert name("hungry") == name("hungry") == "reference"
    assert ran["hungry"] == 1 and not said(caplog, logging.WARNING) and not (tmp_path / "mmkit").exists()
    assert said(caplog, logging.INFO)[-1].endswith(
        "there is no memory to prove hungry (OutOfMemoryError: all of it is taken))"
    )


def test_what_breaks_the_gpu_is_known_to_the_next_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(device: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", broken)
    subject = proof.Subject(OP, "right", right, TRIALS, "reference", reference, reference, torch.float32, False)
    failed = proof.Verdict(False, "it raises RuntimeError: CUDA error", failed=True)
    with pytest.raises(RuntimeError, match="illegal memory access") as caught:
        proof._after(subject, torch.device("cpu"), failed)
    assert "the next process knows, and leaves it out" in caught.value.__notes__[0]
    assert name("right") == "reference" and not ran


def test_a_proof_is_apart_from_what_its_caller_is_doing() -> None:
    torch.manual_seed(3)
    states = torch.get_rng_state(), torch.is_grad_enabled()
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode(), FakeTensorMode(), torch.device("meta"):
        assert name("right", LEARNING) == "right"
        assert torch.is_inference_mode_enabled() and torch.is_autocast_enabled("cpu")
    assert torch.equal(torch.get_rng_state(), states[0]) and torch.is_grad_enabled() == states[1]
    (state,) = {tuple(s.items()) for s in seen}
    assert dict(state) == {
        "autocast": False, "inference": False, "grad": True, "fake": "Tensor",
        "thread": "proof of grouped_linear=right in float32 with gradients",
    }  # fmt: skip


@pytest.mark.parametrize("wanted", ["custom", "right"])
def test_a_choice_made_first_while_compiling_is_a_proof_like_any(wanted: str) -> None:
    def run(x: Tensor, weight: Tensor, load: Tensor) -> Tensor:
        return choose_for(OP, (wanted, "reference"), "plain torch", x, weight)(x, weight, load, None) + 1

    x, weight, load = torch.randn(5, 4), torch.randn(1, 3, 4), torch.tensor([5])
    compiled = torch.compile(
        lambda x, weight, load: (
            choose_for(OP, (wanted, "reference"), "plain torch", x, weight).name == wanted and x + 1
        ),
        fullgraph=True,
        backend="aot_eager",
    )
    assert torch.equal(compiled(x, weight, load), x + 1)
    count = ran["product" if wanted == "custom" else "right"]
    assert count == 2, "the proof alone has run it"
    if wanted == "custom":
        whole = torch.compile(run, fullgraph=True, backend="aot_eager")
        assert torch.equal(whole(x, weight, load), run(x, weight, load)) and ran["product"] == 4


def test_of_two_threads_one_proves() -> None:
    barrier, found = threading.Barrier(2), []

    def ask() -> None:
        barrier.wait()
        found.append(name("right"))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["right", "right"] and ran["right"] == 2


def test_while_a_graph_is_captured_it_is_plain_for_now(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    x, weight = torch.randn(2, 4), torch.randn(1, 2, 4)

    def chosen() -> str:
        return choose_for(OP, ("right", "reference"), "plain torch", x, weight).name

    with monkeypatch.context() as patch, caplog.at_level(logging.INFO, "mmkit"):
        patch.setattr(proof, "_hindrance", lambda device: "a CUDA graph is captured")
        assert chosen() == chosen() == "reference" and not ran
    assert said(caplog, logging.INFO) == [
        "grouped_linear on cpu: reference (plain torch; right cannot be proved while a CUDA graph is captured)"
    ]
    assert chosen() == "right"
    with monkeypatch.context() as patch:
        patch.setattr(proof, "_hindrance", lambda device: "a CUDA graph is captured")
        assert chosen() == "right", "what is proved already may be captured"


def test_capturing_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert proof._hindrance(torch.device("cuda", 0)) == "a CUDA graph is captured"
    assert not proof._hindrance(torch.device("cpu"))


def test_while_gradients_are_computed_it_is_plain_for_now() -> None:
    found = []

    class Asking(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 1

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            found.append(name("right"))
            return grad

    Asking.apply(torch.ones(1, requires_grad=True)).sum().backward()
    assert found == ["reference"] and not ran
    assert name("right") == "right"
