"""The kit finds what is wrong: parts with a planted fault fail the right check, which says where; a sound one passes all."""

from __future__ import annotations

import importlib
import random
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from mmkit import hookimpl
from mmkit.registry import BUILTIN, KINDS, OWN, Registry
from mmkit.testing import Result, checks, entries, run
from mmkit.testing.catalogue import PARTS

BODY = {"depth": 1, "dim": 16, "num_heads": 2}
PATCH = {"patch": 8}
FAULTS = {
    "Noisy": ("connector", "running_touches_no_global_state", "torch's default generator"),
    "Liar": ("connector", "the_folded_port_is_measured", "port: folded tokens are 6 wide, not 7"),
    "Hoarder": ("connector", "tensors_are_parameters_or_buffers", "offset"),
    "Forgetful": ("connector", "it_remembers_nothing_between_calls", "what was asked before"),
    "Leaky": ("connector", "frozen_it_is_not_changed", "project.weight"),
    "Wide": ("connector", "bf16_is_taken_and_given", "embeddings: in bf16 it is torch.float32"),
    "Stubborn": ("connector", "another_seed_gives_other_weights", "project.weight: two seeds"),
    "Bossy": ("connector", "running_touches_no_global_state", "the number of threads"),
    "Patcher": ("connector", "running_touches_no_global_state", "torch.nn.functional.glu"),
    "Mixer": ("connector", "contents_end_to_end_are_what_each_is_alone", "neighbours"),
    "Scribbler": ("connector", "inputs_are_not_written_to", "writes into"),
    "Idle": ("connector", "gradients_reach_every_parameter", "spare"),
    "Rough": ("connector", "nonsense_numbers_build_or_are_refused", "Config.groups: 0 raises ZeroDivisionError"),
    "Grabby": ("connector", "the_backbone_width_and_count_are_measured", "faulty.py"),
    "Blind": ("backbone", "packed_equals_one_by_one", "document 0"),
    "Amnesiac": ("backbone", "cached_equals_uncached", "piece 1"),
    "Careless": ("backbone", "conditions_are_those_of_their_tokens", "states depend on whether tokens share it"),
    "Backwards": ("head", "it_learns_a_span_and_samples_it_back", "away from it"),
    "Gambler": ("head", "randomness_comes_from_the_targets_generators", "torch's default generator"),
    "Eager": ("head", "an_open_span_ends", "finish"),
    "Short": ("tokenizer", "the_codebook_size_or_width_is_measured", "the book has 64"),
    "Greyish": ("tokenizer", "decoding_gives_canonical_contents", "(16, 16) comes back as (15, 16)"),
    "Sociable": ("tokenizer", "keeping_its_tokens_is_safe", "what stands beside changes bits"),
    "Cropped": ("encoder", "the_features_grid_is_measured", "`grid` says (2, 2)"),
    "Halfway": ("sampler", "what_is_known_is_reached", "away from what every prediction says"),
    "Boastful": ("sampler", "more_steps_come_closer", "order: flow: four times the steps"),
    "Counting": ("sampler", "spans_at_any_levels_go_side_by_side", "depends on what is sampled beside it"),
    "Dice": ("sampler", "noise_comes_from_the_generator", "torch's default generator"),
    "Secretive": ("sampler", "noise_comes_from_the_generator", "stochastic: flow: it is False"),
    "Meddler": ("metric", "measuring_changes_nothing", "it changes a record"),
}
ALSO = {
    "Mixer": ("connector", "single_tokens_are_what_they_are_together", "whole: it is false"),
    "Blind": ("backbone", "nothing_is_seen_that_the_mask_hides", "plan"),
    "Rough": ("connector", "options_are_documented", "groups"),
    "Counting": ("sampler", "a_step_is_a_function_of_its_state", "the same state goes on otherwise"),
    "Halfway": ("sampler", "samples_have_the_spread_of_the_data", "samples have the mean"),
}
EXAMPLES = {("backbone", "Blind"): (BODY,), ("backbone", "Amnesiac"): (BODY,),
            ("backbone", "Careless"): ({**BODY, "modulation": "adaln"},), ("encoder", "Cropped"): (PATCH,),
            ("head", "Gambler"): ({"length": 8},)}  # fmt: skip


class Faulty:
    """What a distribution of these parts would register."""

    @hookimpl
    def mmkit_components(self, register):
        for name, (kind, _, _) in FAULTS.items():
            register(kind, name, f"faulty:{name}")
        register("connector", "Gate", "faulty:Gate")
        register("connector", "Absent", "faulty:Absent")
        register("modality", "Signal", "faulty:Signal")


@pytest.fixture(scope="module")
def registry() -> Registry:
    found = Registry()
    for name in BUILTIN:
        found.add(importlib.import_module(name), OWN, "1")
    found.add(Faulty(), "mmkit-faulty", "1")
    return found


@pytest.fixture(autouse=True)
def restored():
    """Faults that touch the process are undone."""
    glu, threads = torch.nn.functional.glu, torch.get_num_threads()
    yield
    torch.nn.functional.glu = glu
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("name", "kind", "check", "place"), [(n, *f) for table in (FAULTS, ALSO) for n, f in table.items()]
)
def test_a_planted_fault_is_found_and_named(registry, name: str, kind: str, check: str, place: str) -> None:
    results = run([registry.find(kind, name)], registry=registry, examples=EXAMPLES, only=[check])
    assert results and not results[0].ok, f"{check} finds nothing wrong with {name}"
    assert place in results[0].reason, results[0].reason


def state() -> tuple[object, ...]:
    """Of all random generators of the process."""
    return random.getstate(), np.random.get_state()[1].tobytes(), torch.random.get_rng_state().tolist()


@pytest.fixture(scope="module")
def gate(registry) -> tuple[list[Result], bool]:
    """What the kit says of a sound part, and whether the process is what it was before."""
    before = state()
    return run([registry.find("connector", "Gate")], registry=registry, slow=False), state() == before


def test_a_sound_part_passes_everything(gate: tuple[list[Result], bool]) -> None:
    results, _ = gate
    assert [r for r in results if not r.ok] == []
    assert len([r for r in results if r.applies]) > 60  # twice, of latents and of features


@pytest.mark.slow
def test_a_sound_part_composes(registry) -> None:
    wanted = [c.name for c in checks("connector") if c.name.startswith("composes_with")]
    results = run([registry.find("connector", "Gate")], registry=registry, only=wanted)
    assert len(results) == 4 and all(r.ok for r in results), [r.reason for r in results]


def test_a_part_that_cannot_be_loaded_fails_with_its_reason(registry) -> None:
    results = run([registry.find("connector", "Absent")], registry=registry)
    assert results and not any(r.ok for r in results)
    assert "faulty:Absent of mmkit-faulty 1 cannot be loaded" in results[0].reason


def test_a_part_without_examples_says_what_is_missing(registry) -> None:
    results = run([registry.find("backbone", "Blind")], registry=registry, only=["it_builds", "it_is_deterministic"])
    assert [r.ok for r in results] == [False, True]
    assert "declares no `examples`" in results[0].reason and "'depth' is missing" in results[0].reason
    assert not results[1].applies


@pytest.mark.parametrize("kind", PARTS)
def test_every_kind_of_part_has_at_least_fifty_checks(kind: str) -> None:
    assert len(checks(kind)) >= 50


def test_every_kind_is_checked_and_every_check_says_what_it_proves() -> None:
    assert all(checks(kind) for kind in KINDS)
    assert all(c.about.endswith(".") and "\n\n" not in c.about for c in checks())


def test_running_the_kit_touches_no_global_state(gate: tuple[list[Result], bool]) -> None:
    _, untouched = gate
    assert untouched


def test_entries_are_found_by_package_kind_and_name(registry) -> None:
    assert {e.name for e in entries("mmkit-faulty", registry=registry)} == {*FAULTS, "Gate", "Absent", "Signal"}
    assert [e.name for e in entries("encoder/patch", "encoder", registry=registry)] == ["patch", "Cropped", "timm"]
    with pytest.raises(ValueError, match="no installed package of that name provides a component"):
        entries("mmkit-nothing", registry=registry)


def test_importing_the_kit_and_its_plugin_imports_no_torch() -> None:
    code = "import sys, mmkit.testing, mmkit.testing.plugin; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_pytest_runs_the_kit_without_a_file(tmp_path) -> None:
    (tmp_path / "test_own.py").write_text("def test_own(): assert False\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--mmkit-check", "modality/text"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout


def test_three_lines_are_a_test_file(tmp_path) -> None:
    (tmp_path / "test_parts.py").write_text(
        textwrap.dedent("""
        from mmkit.testing import conformance

        test_conformance = conformance("positions/rope")
        """)
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--strict-markers"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
