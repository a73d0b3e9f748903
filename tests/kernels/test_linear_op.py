"""Linear layers in low precision: right to one rounding, float32 weights that are never stale, and nothing else touched."""

from __future__ import annotations

import copy
import gc
import pickle
import platform
import threading
import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmkit.kernels import dispatch
from mmkit.kernels import linear as op
from mmkit.kernels.dispatch import using
from mmkit.kernels.linear import FEW, emulated, forget, held, linear, native, shadow
from mmkit.kernels.linear.split import ROWS, SIZE, split
from mmkit.nn.linear import Linear

LOW = (torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def without_native_low_precision(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever this machine has, its CPU is one without; and no weights are left of other tests."""
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(native, "features", dict)
    emulated.cache_clear()
    forget()
    yield
    emulated.cache_clear()
    forget()


def drawn(rows: int, dtype: torch.dtype, wide: int = 48, narrow: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    return tuple(torch.randn(*s, generator=generator).to(dtype) for s in ((rows, wide), (narrow, wide), (narrow,)))


def layer(dtype: torch.dtype = torch.bfloat16) -> Linear:
    return Linear(48, 32).to(dtype).requires_grad_(False)


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("rows", [FEW + 1, 64])
@torch.no_grad()
def test_many_rows_are_the_exact_result_rounded_once(rows: int, dtype: torch.dtype) -> None:
    x, weight, bias = drawn(rows, dtype)
    found = linear(x, weight, bias)
    wanted = F.linear(x.double(), weight.double(), bias.double())
    assert found.dtype == dtype and held()
    # Half a unit in the last place, and what float32 sums of 48 products may add to that near a tie.
    torch.testing.assert_close(found.double(), wanted, rtol=torch.finfo(dtype).eps / 2 * 1.01, atol=1e-4)


@pytest.mark.parametrize("rows", [0, 1, FEW])
@torch.no_grad()
def test_few_rows_are_torchs_own(rows: int) -> None:
    x, weight, bias = drawn(rows, torch.bfloat16)
    assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
    assert not held()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wide_dtypes_and_gradients_are_torchs_own(dtype: torch.dtype) -> None:
    for kind, grad in ((dtype, False), (dtype, True), (torch.bfloat16, True)):
        x, weight, bias = (t.requires_grad_(grad) for t in drawn(9, kind))
        with torch.set_grad_enabled(grad):
            assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
    assert not held()


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets how many threads torch has, for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 2, 3, 12])
@pytest.mark.parametrize("channels", [1, 7, 8, 24, 64, 96])
@torch.no_grad()
def test_shared_out_among_threads_it_is_the_same_product(
    count: int, channels: int, threads: Callable[[int], None]
) -> None:
    threads(count)
    wide = torch.randn(channels, 80, dtype=torch.float64)
    for weight in (wide[:, :40], wide[:, :40].T.contiguous().T):
        for shape in ((40,), (1, 40), (5, 40), (2, 3, 40), (0, 40)):
            x = torch.randn(shape, dtype=torch.float64)
            for bias in (None, torch.randn(channels, dtype=torch.float64)):
                found, wanted = split(x, weight, bias), F.linear(x, weight, bias)
                assert found.shape == wanted.shape
                # float64: another order of summation
                torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("count", "rows", "shared"), [(2, 1, True), (2, ROWS, True), (2, ROWS + 1, False), (1, 1, False)]
)
@torch.no_grad()
def test_few_rows_of_a_large_matrix_are_shared_out(
    count: int, rows: int, shared: bool, threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    threads(count)
    asked: list[str] = []
    monkeypatch.setattr(op, "choose_for", lambda *given: asked.append(given[1]) or dispatch.choose_for(*given))
    x, weight = torch.randn(rows, 64), torch.randn(SIZE // 64, 64)
    # float32: another order of summation
    torch.testing.assert_close(linear(x, weight), F.linear(x, weight), rtol=1e-5, atol=1e-4)
    assert asked == (["split"] if shared else [])
    with using({"linear": "torch"}):
        assert torch.equal(linear(x, weight), F.linear(x, weight))


def test_the_layer_is_torchs_layer() -> None:
    """The same initial weights and names; a copy, a pickle and a layer without memory work as torch's do."""
    torch.manual_seed(3)
    theirs = nn.Linear(48, 32)
    torch.manual_seed(3)
    ours = Linear(48, 32)
    assert list(ours.state_dict()) == list(theirs.state_dict()) == ["weight", "bias"]
    assert torch.equal(ours.weight, theirs.weight)
    x = drawn(9, torch.bfloat16)[0]
    low = layer()
    with torch.no_grad():
        wanted = low(x)
        assert held()
        assert list(low.state_dict()) == ["weight", "bias"] and len(list(low.parameters())) == 2
        assert not list(low.buffers()) and not vars(low.weight)
        for copied in (copy.deepcopy(low), _pickled(low)):
            assert torch.equal(copied(x), wanted)
        assert low.to("meta")(x.to("meta")).is_meta


def _pickled(module: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(module))


def _in_place(module: Linear) -> None:
    module.load_state_dict({name: torch.randn_like(x) for name, x in module.state_dict().items()})


def _added(module: Linear) -> None:
    module.weight.add_(1)


def _fused(module: Linear) -> None:
    torch._foreach_add_([module.weight, module.bias], 1.0)


def _assigned(module: Linear) -> None:
    module.load_state_dict({name: torch.randn_like(x) for name, x in module.state_dict().items()}, assign=True)


def _replaced(module: Linear) -> None:
    module.weight = nn.Parameter(torch.randn_like(module.weight))


def _data(module: Linear) -> None:
    module.weight.data = torch.randn_like(module.weight)


def _there_and_back(module: Linear) -> None:
    """The memory of the first weights is free by then, and may be that of the last."""
    for _ in range(2):
        module.weight.data = torch.randn_like(module.weight)


def _viewed(module: Linear) -> None:
    module.weight[3:7] = 5.0


def _cast(module: Linear) -> None:
    module.to(torch.float32).weight.mul_(2)
    module.to(torch.bfloat16)


@pytest.mark.parametrize(
    "change", [_in_place, _added, _fused, _assigned, _replaced, _data, _there_and_back, _viewed, _cast]
)
@torch.no_grad()
def test_changed_weights_are_read_anew(change: Callable[[Linear], None]) -> None:
    module = layer()
    x = drawn(9, torch.bfloat16)[0]
    before = module(x)
    assert torch.equal(module(x), before)
    change(module)
    found = module(x)
    wanted = F.linear(x.double(), module.weight.double(), module.bias.double())
    assert not torch.equal(found, before)
    torch.testing.assert_close(found.double(), wanted, rtol=torch.finfo(torch.bfloat16).eps, atol=1e-4)
    assert held() == 48 * 32 * 4


@torch.no_grad()
def test_another_dtype_of_the_same_parameter() -> None:
    module = layer()
    x = drawn(9, torch.bfloat16)[0]
    module(x)
    module.to(torch.float16)
    wanted = F.linear(x.double(), module.weight.double(), module.bias.double())
    torch.testing.assert_close(module(x.half()).double(), wanted, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_what_is_gone_leaves_nothing() -> None:
    module = layer()
    module(drawn(9, torch.bfloat16)[0])
    (kept,) = list(shadow._shadows.values())
    weight, wide = weakref.ref(module.weight), weakref.ref(kept.wide_OI)
    del module, kept
    gc.collect()
    assert weight() is None and wide() is None and not held()


@torch.no_grad()
def test_what_is_written_behind_torchs_back_is_seen_once_it_is_said() -> None:
    module = layer()
    x = drawn(9, torch.bfloat16)[0]
    before = module(x)
    module.weight.data.zero_()
    forget()
    assert not torch.equal(module(x), before) and torch.equal(module(x), module.bias.expand(9, -1))


def test_weights_of_inference_mode_are_not_kept() -> None:
    """They have no count of writes."""
    with torch.inference_mode():
        x, weight, bias = drawn(9, torch.bfloat16)
        before = linear(x, weight, bias)
        weight.mul_(2)
        assert not torch.equal(linear(x, weight, bias), before) and not held()
    module = layer()
    with torch.inference_mode():
        first = module(drawn(9, torch.bfloat16)[0])
    with torch.no_grad():
        assert torch.equal(module(drawn(9, torch.bfloat16)[0]), first) and held()


@torch.no_grad()
def test_it_is_switched_off_by_the_recipe_and_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = drawn(9, torch.bfloat16)
    with using({"linear": "torch"}):
        assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
    monkeypatch.setenv(dispatch.VARIABLE, "linear=reference")
    assert torch.equal(linear(x, weight, bias), x @ weight.T + bias)
    assert not held()


@pytest.mark.parametrize(
    ("machine", "there", "bf16", "fp16"),
    [
        ("x86_64", {}, True, True),
        ("AMD64", {"avx512_f": True, "avx512_bf16": False}, True, True),
        ("x86_64", {"avx512_bf16": True}, False, True),
        ("x86_64", {"amx_bf16": True, "amx_fp16": False, "avx512_fp16": True}, False, False),
        ("aarch64", {}, False, False),
    ],
)
@torch.no_grad()
def test_the_choice(
    machine: str, there: dict[str, bool], bf16: bool, fp16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(native, "features", lambda: there)
    emulated.cache_clear()
    for dtype, wanted in ((torch.bfloat16, bf16), (torch.float16, fp16)):
        assert emulated(dtype) == wanted
        given = drawn(9, dtype)
        linear(*given)
        assert bool(held()) == wanted
        forget()
    assert not emulated(torch.float32)


def test_an_older_torch_is_asked_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    now = native.features()
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    for name in ("_is_amx_tile_supported", "_is_amx_fp16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    assert native.features() == {"avx512_bf16": True, "amx_bf16": False, "amx_fp16": False}
    assert set(native.features()) <= set(now) or platform.machine().lower() not in ("x86_64", "amd64")


@torch.no_grad()
def test_autocast_and_other_dtypes_are_torchs_own() -> None:
    x, weight, bias = drawn(9, torch.bfloat16)
    with torch.autocast("cpu", torch.float16):
        assert linear(x, weight, bias).dtype == torch.float16
    with pytest.raises(RuntimeError, match="dtype"):
        linear(x.float(), weight, bias)
    assert not held()


@torch.no_grad()
def test_two_threads_share_the_weights() -> None:
    module = layer()
    x = drawn(40, torch.bfloat16)[0]
    wanted, found = module(x), []

    def work() -> None:
        with torch.no_grad():
            for _ in range(20):
                forget()
                found.append(torch.equal(module(x), wanted))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 40 and held() == 48 * 32 * 4


@torch.no_grad()
def test_torch_compile_takes_torchs_own() -> None:
    module = layer()
    x = drawn(9, torch.bfloat16)[0]
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), F.linear(x, module.weight, module.bias)) and not held()
