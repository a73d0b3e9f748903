"""Runs on this machine: each has GPUs of its own, out of those that may be used, and its share of the threads."""

from __future__ import annotations

import json
import sys
import time

import pytest

from mmkit.ablate.launchers.local import Local, visible_devices
from mmkit.contracts.launcher import STDERR, Job
from mmkit.errors import LaunchError

TELL = (
    "import os, sys\n"
    "print(os.environ['CUDA_VISIBLE_DEVICES'], os.environ['OMP_NUM_THREADS'], sys.stdin.readline(), file=sys.stderr)"
)


@pytest.fixture
def machine(monkeypatch):
    """Pretends that so many GPUs are there, and that a run tells what it was given instead of training."""

    def pretend(count, visible=None, program=TELL):
        monkeypatch.setattr("torch.cuda.device_count", lambda: count)
        monkeypatch.setattr("torch.get_num_threads", lambda: 8)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        original = __import__("subprocess").Popen
        monkeypatch.setattr(
            "subprocess.Popen", lambda command, **options: original([sys.executable, "-c", program], **options)
        )

    return pretend


def launcher(jobs, **options):
    return Local(Local.Config(**options), jobs)


def job(folder, name):
    return Job("model: {}", folder / name, folder / "shared", 3, name)


@pytest.mark.parametrize(
    ("count", "visible", "found"),
    [
        (0, None, []), (2, None, ["0", "1"]), (2, "5,3", ["5", "3"]), (0, "", []), (1, "4, 9", ["4"]),
        (2, "GPU-8a,GPU-1f", ["GPU-8a", "GPU-1f"]),
    ],
)  # fmt: skip
def test_a_list_of_devices_that_is_set_is_kept_to(count, visible, found, machine):
    machine(count, visible)
    assert visible_devices() == found


@pytest.mark.parametrize(
    ("count", "gpus", "jobs", "slots"),
    [(0, "auto", 3, 3), (4, "auto", 3, 3), (4, "auto", 9, 4), (4, 2, 9, 2), (5, 2, 9, 2), (4, 0, 9, 9), (0, 0, 2, 2)],
)
def test_no_more_run_at_a_time_than_there_are_gpus_for(count, gpus, jobs, slots, machine):
    machine(count)
    assert launcher(jobs, gpus=gpus).slots == slots


@pytest.mark.parametrize(("count", "there"), [(0, "none is"), (1, "one is"), (2, "2 are")])
def test_more_gpus_than_there_are_is_one_error(count, there, machine):
    machine(count)
    with pytest.raises(LaunchError) as raised:
        launcher(1, gpus=3)
    assert str(raised.value).startswith(f"launcher.gpus: each run asks for 3, and {there} visible here. ask for fewer")


@pytest.mark.parametrize(("count", "gpus", "device"), [(0, "auto", "cpu"), (2, "auto", "auto"), (2, 0, "cpu")])
def test_what_a_run_trains_on(count, gpus, device, machine):
    machine(count)
    assert launcher(1, gpus=gpus).device == device


@pytest.mark.parametrize(("jobs", "threads"), [(1, 8), (3, 2), (9, 1)])
def test_runs_share_the_threads(jobs, threads, machine):
    machine(0)
    assert launcher(jobs).threads == threads


def test_each_run_has_gpus_of_its_own_which_are_free_again_when_it_ends(tmp_path, machine):
    wait = "import os, sys, time; print(os.environ['CUDA_VISIBLE_DEVICES'], file=sys.stderr); sys.stderr.flush(); time.sleep(60)"
    machine(5, "7,5,3,1,0", wait)
    found = launcher(9, gpus=2)
    first, second = found.start(job(tmp_path, "a")), found.start(job(tmp_path, "b"))
    assert (first.devices, second.devices, found.threads) == (["7", "5"], ["3", "1"], 4)
    assert first.said == f"started on GPU 7, 5, process {first.process.pid}"
    first.kill()
    assert first.wait() == -9 and second.poll() is None
    third = found.start(job(tmp_path, "c"))
    assert third.devices == ["7", "5"]
    end = time.monotonic() + 30
    while (tmp_path / "c" / STDERR).read_text() != "7,5\n":
        assert time.monotonic() < end
        time.sleep(0.05)
    for each in (second, third):
        each.kill()
        each.wait()


def test_a_run_is_given_its_job_no_gpu_and_its_threads(tmp_path, machine):
    machine(0)
    given = job(tmp_path, "deep/in/here")
    started = launcher(4).start(given)
    assert started.wait() == 0
    devices, threads, line = (given.run / STDERR).read_text().split(" ", 2)
    assert (devices, threads) == ("", "2")
    assert json.loads(line) == {
        "recipe": "model: {}", "run": str(given.run), "shared": str(tmp_path / "shared"), "per_task": 3, "title": "deep/in/here",
    }  # fmt: skip
