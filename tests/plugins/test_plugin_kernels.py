"""Kernels from a package: listed without import, used where they are named, held against the reference of their op."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from distributions import Site

from mmkit import cli, ops, registry, testing
from mmkit.errors import ContractError, PluginError
from mmkit.kernels.dispatch import using
from mmkit.kernels.vq import nearest_code
from mmkit.sequence.lowering import lower
from mmkit.sequence.visibility import Visibility

SOURCE = '''
import torch

from mmkit.kernels.attention import Plan, reference
from mmkit.kernels.dispatch import kernel


@kernel()
def looped(x_NC, codes_KC):
    """One vector after another."""
    found = [(codes_KC - x_C).square().sum(1).argmin() for x_C in x_NC]
    return torch.stack(found) if found else torch.zeros(0, dtype=torch.int64)


@kernel()
def farthest(x_NC, codes_KC):
    """The wrong code."""
    return torch.cdist(x_NC, codes_KC).argmax(1)


@kernel()
def latest(x_NC, codes_KC):
    """The last of equal codes."""
    return len(codes_KC) - 1 - torch.cdist(x_NC, codes_KC.flip(0)).argmin(1)


class Mine(Plan):
    def __init__(self, mask_QS):
        self.mask_QS = mask_QS

    def run(self, q, k, v, scale):
        return reference(q, k, v, self.mask_QS, scale=scale)


@kernel(devices=("cpu",))
def mine(queries, keys, device):
    """A plan of its own."""
    return Mine(torch.from_numpy(queries.matrix(keys)))


@kernel()
def unmasked(queries, keys, device):
    """Everything is seen."""
    return Mine(torch.ones(len(queries), len(keys), dtype=torch.bool))


class Cut(Mine):
    def run(self, q, k, v, scale):
        return super().run(q, k.detach(), v, scale)


@kernel()
def cut(queries, keys, device):
    """No gradient reaches the keys."""
    return Cut(torch.from_numpy(queries.matrix(keys)))


@kernel(devices=("npu",))
def elsewhere(queries, keys, device):
    """Runs on what is not here."""


@kernel()
def renamed(seen, other, where):
    """Other arguments."""


def unmarked(x_NC, codes_KC):
    """Not marked."""
'''
HOOKS = """
from mmkit import hookimpl


@hookimpl
def mmkit_kernels(register):
    register("nearest_code", "looped", "odd_kit:looped")
"""
NAMES = {
    "nearest_code": ("looped", "farthest", "latest", "unmarked"),
    "attention": ("mine", "unmasked", "cut", "elsewhere", "renamed"),
}


@pytest.fixture
def odd(site: Site) -> Site:
    entries = {f"kernel.{op}.{name}": f"odd_kit:{name}" for op, names in NAMES.items() for name in names}
    site.add("odd-kit", entries, {"odd_kit/__init__.py": SOURCE})
    return site


def mmkit(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, list(arguments))


def failures(kernel: str, site: Site) -> dict[str, str]:
    known = site.read()
    results = testing.run(testing.entries(f"kernel/{kernel}", registry=known))
    return {r.check.name: r.reason for r in results if not r.ok}


def test_they_are_listed_without_being_imported(odd: Site) -> None:
    odd.read()
    listed = mmkit("list", "kernel").output
    row = next(line for line in listed.splitlines() if "nearest_code.looped" in line)
    assert row.split() == ["kernel", "nearest_code.looped", "odd-kit", "1.0", "One", "vector", "after", "another."]
    why = mmkit("list", "--why", "nearest_code.looped").output
    assert "kernel 'nearest_code.looped': odd-kit 1.0 registers odd_kit:looped" in why
    assert "odd_kit" not in sys.modules


def test_a_package_changes_nothing_before_it_is_named(odd: Site) -> None:
    odd.read()
    x, codes = torch.randn(9, 3), torch.randn(5, 3)
    nearest_code(x, codes)
    assert "odd_kit" not in sys.modules
    with using({"nearest_code": "odd-kit/farthest"}):
        assert torch.equal(nearest_code(x, codes), torch.cdist(x, codes).argmax(1))


def test_two_packages_one_name(odd: Site) -> None:
    odd.add("even-kit", {"kernel.nearest_code.looped": "even_kit:looped", "kernel.attention.dense": "even_kit:dense"})
    known = odd.read()
    assert ops.names(known, "nearest_code") == [
        "chunked", "even-kit/looped", "farthest", "latest", "odd-kit/looped", "reference", "triton", "unmarked",
    ]  # fmt: skip
    assert ops.kernel(known, "attention", "dense").owner == "mmkit"
    with pytest.raises(
        PluginError, match=r"^kernel 'looped' of nearest_code: .*write `even-kit/looped` or `odd-kit/looped`"
    ):
        ops.kernel(known, "nearest_code", "looped")


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("kernel.matmul.fast", f"unknown op 'matmul' of kernel 'fast'. ops are {', '.join(registry.OPS)}"),
        ("kernel.attention.auto", "a kernel cannot be named 'auto'"),
        ("kernel.attention", "'' is no name of a kernel"),
    ],
)
def test_lists_that_are_wrong(entry: str, reason: str, site: Site) -> None:
    site.add("odd-kit", {entry: "odd_kit:it"})
    assert reason in site.read().broken["odd-kit"]


def test_code_registers_what_is_listed(site: Site) -> None:
    entries = {"kernel.nearest_code.looped": "odd_kit:looped", "plugin": "odd_kit.plugin"}
    site.add("odd-kit", entries, {"odd_kit/__init__.py": SOURCE, "odd_kit/plugin.py": HOOKS})
    known = site.read()
    assert ops.kernel(known, "nearest_code", "looped").load() and not known.unread and not known.problems()


@pytest.mark.parametrize("kernel", ["nearest_code.looped", "attention.mine"])
def test_what_agrees_with_the_reference_passes(kernel: str, odd: Site) -> None:
    assert failures(kernel, odd) == {}


@pytest.mark.parametrize(
    ("kernel", "check", "reason"),
    [
        ("nearest_code.farthest", "it_finds_the_nearest_code", "a nearer code is there"),
        ("nearest_code.latest", "it_finds_the_nearest_code", "of equally near codes it does not find the first"),
        ("nearest_code.unmarked", "it_says_where_it_runs", "mark it with `@kernel(...)`"),
        ("attention.unmasked", "it_agrees_with_the_reference", "packed documents, 4 heads of 16 and 2 key heads"),
        ("attention.cut", "its_gradients_agree_with_those_of_the_reference", "no gradient reaches input 1"),
        ("attention.renamed", "it_says_where_it_runs", "it takes seen, other, where, and its op gives queries, keys"),
    ],
)
def test_what_does_not_is_found(kernel: str, check: str, reason: str, odd: Site) -> None:
    assert reason in failures(kernel, odd)[check]


def test_what_cannot_run_here_is_told_apart(odd: Site) -> None:
    known = odd.read()
    results = testing.run(testing.entries("kernel/attention.elsewhere", registry=known))
    reasons = {r.check.name: r.reason for r in results if r.ok and not r.applies}
    assert reasons["it_agrees_with_the_reference"] == "it runs on npu, and this machine has none that will do"


def test_windows_are_for_those_that_know_them(odd: Site) -> None:
    odd.read()
    ranks = np.arange(5, dtype=np.int32)
    seen = Visibility(0 * ranks, ranks, 0 * ranks, ranks)
    assert torch.equal(lower(seen, device="cpu", implementation="mine").mask_QS, torch.ones(5, 5).tril().bool())
    assert lower(seen.windowed(5), device="cpu", implementation="mine"), "it hides nothing"
    with pytest.raises(ContractError, match="the kernel 'mine' of attention knows no sliding windows"):
        lower(seen.windowed(4), device="cpu", implementation="mine")


@pytest.mark.slow
def test_plugin_check_puts_them_through_the_kit(odd: Site) -> None:
    odd.read()
    good = mmkit("plugin", "check", "kernel/attention.mine")
    bad = mmkit("plugin", "check", "kernel/nearest_code.farthest")
    assert good.exit_code == 0 and "odd-kit kernel/attention.mine: 6 of 6 checks hold" in good.output
    assert bad.exit_code == 1 and "a nearer code is there" in bad.output
