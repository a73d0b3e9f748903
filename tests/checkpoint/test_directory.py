"""Publishing, pruning, finding and locking, and what a failing disk leaves behind."""

from __future__ import annotations

import errno
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from states import same_tensors, training_state

from mmkit.checkpoint import directory, disk, latest, lock, read, verify, write, write_text
from mmkit.errors import CheckpointError

MakeRun = Callable[..., Path]


@pytest.fixture
def fail_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[str]]]:
    """Raises an error of the operating system at the n-th named instant, and says which instants passed."""
    monkeypatch.setattr(directory, "BACK_OFF", (0.0, 0.0, 0.0))

    def install(at: int, number: int, times: int = 10**9) -> list[str]:
        passed: list[str] = []
        left = times

        def phase(name: str) -> None:
            nonlocal left
            passed.append(name)
            if left and (len(passed) - 1 == at or (len(passed) > at and name == passed[at])):
                left -= 1
                raise OSError(number, os.strerror(number))

        monkeypatch.setattr(disk, "phase", phase)
        return passed

    yield install


def hidden(run: Path) -> list[str]:
    """Leftovers among a run's checkpoints."""
    return sorted(p.name for p in (run / "checkpoints").iterdir() if p.name.startswith("."))


def steps(run: Path) -> list[int]:
    """The steps that are there."""
    return [int(p.name[5:]) for p in directory.checkpoints(run)]


def test_the_newest_are_kept(make_run: MakeRun) -> None:
    assert steps(make_run(1, 2, 30, 4, keep=2, name="b")) == [2, 4, 30]  # 30 is ahead of 4: not this run's to remove
    assert steps(make_run(1, 2, 3, 4, keep=1, name="c")) == [4]
    assert steps(make_run(1, 2, 3, 4, keep=3, name="d")) == [2, 3, 4]


def test_a_damaged_checkpoint_does_not_count_as_kept(make_run: MakeRun) -> None:
    run = make_run(1, 2, 3)
    (run / "checkpoints/step-00000003/manifest.json").unlink()
    write(run, 4, **training_state(4), keep=2)
    assert steps(run) == [2, 3, 4]
    write(run, 5, **training_state(5), keep=2)
    assert steps(run) == [4, 5]


def test_a_step_written_again_is_replaced(make_run: MakeRun) -> None:
    run = make_run(1, 2)
    write(run, 2, **training_state(9), keep=2)
    found = read(run / "checkpoints/step-00000002")
    verify(found.path)
    assert same_tensors(found.model(), training_state(9)["model"]) and not hidden(run)


def test_latest_goes_back_to_the_newest_that_verifies(make_run: MakeRun) -> None:
    run = make_run(1, 2, 3)
    assert latest(run) == run / "checkpoints/step-00000003"
    (run / "checkpoints/step-00000003/trainer.json").unlink()
    os.truncate(run / "checkpoints/step-00000002/optimizer.safetensors", 9)
    with pytest.warns(UserWarning) as warned:
        assert latest(run) == run / "checkpoints/step-00000001"
    said = [str(w.message) for w in warned]
    assert (
        "step-00000003/trainer.json: is missing" in said[0] and "step-00000002/optimizer.safetensors: has 9" in said[1]
    )
    assert latest(run.parent / "nowhere") is None


def test_everything_is_on_the_disk_before_it_gets_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The order of syncs and renames is what a power cut leaves a whole checkpoint or none by."""
    events: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def note_sync(descriptor: int) -> None:
        events.append("sync " + Path(f"/proc/self/fd/{descriptor}").readlink().name.split("-step")[0])
        fsync(descriptor)

    def note_rename(self: Path, target: Path) -> Path:
        events.append("rename to " + target.name)
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "rename", note_rename)
    write(tmp_path / "run", 1, **training_state(1), keep=1)
    assert events == [
        f"sync {tmp_path.name}", "sync run",
        "sync model.safetensors", "sync ema.safetensors", "sync optimizer.safetensors", "sync trainer.json",
        "sync recipe.yaml", "sync manifest.json", "sync .writing", "rename to step-00000001", "sync checkpoints",
    ]  # fmt: skip


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES, errno.ESTALE, errno.EDQUOT])
def test_a_failing_disk_leaves_all_as_it_was(make_run: MakeRun, fail_at: Callable[..., list[str]], number: int) -> None:
    """At each instant up to the rename: a clear error, nothing left behind, the older checkpoints bit for bit."""
    run = make_run(1, 2)
    everything = fail_at(10**6, number)
    write(Path(shutil.copytree(run, run.with_name("trial"))), 2, **training_state(9), keep=2)
    assert "displaced" in everything and len(everything) >= 16
    for instant in range(everything.index("displaced") + 1):
        fail_at(instant, number)
        if number in directory._MAY_PASS:
            with (
                pytest.warns(UserWarning, match="trying again"),
                pytest.raises(CheckpointError, match="could not be wr"),
            ):
                write(run, 2, **training_state(9), keep=2)
        else:
            with pytest.raises(CheckpointError, match="step-00000002: the checkpoint could not be written") as caught:
                write(run, 2, **training_state(9), keep=2)
            assert os.strerror(number) in str(caught.value) and "finished before are untouched" in str(caught.value)
        assert not hidden(run) and steps(run) == [1, 2]
        for path in directory.checkpoints(run):
            verify(path)
        assert same_tensors(read(run / "checkpoints/step-00000002").model(), training_state(2)["model"])


def test_a_fault_that_passes_is_tried_again(make_run: MakeRun, fail_at: Callable[..., list[str]]) -> None:
    run = make_run(1)
    fail_at(4, errno.EIO, times=2)
    with pytest.warns(UserWarning, match="trying again") as warned:
        write(run, 2, **training_state(2), keep=2)
    assert len(warned) == 2
    assert latest(run) == run / "checkpoints/step-00000002" and not hidden(run)


def test_a_fault_while_pruning_is_only_a_warning(make_run: MakeRun, fail_at: Callable[..., list[str]]) -> None:
    run = make_run(1)
    passed = fail_at(10**6, errno.EIO)
    write(run, 2, **training_state(2), keep=2)
    instant = len(passed)
    fail_at(instant, errno.EIO)
    with pytest.warns(UserWarning, match="step-00000001: an old checkpoint could not be removed"):
        write(run, 3, **training_state(3), keep=2)
    assert latest(run) == run / "checkpoints/step-00000003"


def test_a_full_disk(make_run: MakeRun) -> None:
    """The system itself refuses to let a file grow; the file is larger than any buffer, so it fails while writing."""
    run = make_run(1)
    state = training_state(2)
    state["model"]["backbone.large"] = torch.zeros(500_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(CheckpointError, match=r"could not be written \(File too large\). free some space"):
            write(run, 2, **state, keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not hidden(run) and latest(run) == run / "checkpoints/step-00000001"


def test_an_interrupt_leaves_nothing(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(1)

    def phase(name: str) -> None:
        if name == "wrote ema.safetensors":
            raise KeyboardInterrupt

    monkeypatch.setattr(disk, "phase", phase)
    with pytest.raises(KeyboardInterrupt):
        write(run, 2, **training_state(2), keep=2)
    assert not hidden(run) and steps(run) == [1]


def test_only_our_own_leftovers_are_cleaned(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(1)
    parent = run / "checkpoints"
    dead = next(pid for pid in range(4_000_000, 4_100_000) if not Path(f"/proc/{pid}").exists())
    gone = [
        f".writing-step-00000002-{dead}-0123abcd", f".removing-step-00000002-{dead}-0123abcd",
        f".writing-step-00000002-{os.getpid()}-0123abcd",  # a process of an earlier boot that had our number
        f".writing-step-00000002-{10**30}-0123abcd",
    ]  # fmt: skip
    stay = [
        f".writing-step-00000002-{os.getppid()}-0123abcd",  # alive
        f".writing-step-2-{dead}-0123abcd", ".writing-mine", ".cache", f".writing-step-00000002-{dead}-0123abcd.txt",
    ]  # fmt: skip
    for name in gone + stay:
        (parent / name).mkdir()
        (parent / name / "model.safetensors").write_bytes(b"half")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    link = f".writing-step-00000002-{dead}-ffffffff"
    (parent / link).symlink_to(elsewhere)
    with lock(run):
        assert hidden(run) == sorted([*stay, link])
    assert elsewhere.is_dir() and latest(run) is not None


def test_a_leftover_that_is_complete_gets_its_name(make_run: MakeRun) -> None:
    run = make_run(1, 2)
    parent = run / "checkpoints"
    (parent / "step-00000002").rename(parent / f".writing-step-00000002-{10**30}-0123abcd")
    with lock(run):
        assert steps(run) == [1, 2] and not hidden(run)
    (parent / "step-00000002").rename(parent / f".writing-step-00000007-{10**30}-0123abcd")
    with lock(run):
        assert steps(run) == [1] and not hidden(run)


def test_a_run_in_use_is_refused(make_run: MakeRun) -> None:
    run = make_run(1)
    said = rf"is in use by process {os.getpid()} on \S+ since 20\d\d-.*choose another"
    with lock(run), pytest.raises(CheckpointError, match=said), lock(run):
        pass
    with lock(run):
        pass


def test_a_lock_is_not_written_through_a_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    run = tmp_path / "run"
    run.mkdir()
    (run / "lock").symlink_to(victim)
    with pytest.raises(CheckpointError, match="cannot be locked"), lock(run):
        pass
    assert victim.read_text() == "precious"


def test_a_small_file_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "recipe.yaml"
    write_text(target, "one")
    write_text(target, "två")
    assert target.read_text(encoding="utf-8") == "två"

    def phase(name: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(disk, "phase", phase)
    with pytest.raises(CheckpointError, match="No space left"):
        write_text(target, "three")
    assert target.read_text(encoding="utf-8") == "två" and len(list(tmp_path.iterdir())) == 1
