"""A run's checkpoints on disk: published whole, found again, pruned, and one writer at a time. Torch-free.

Names in ``<run>/checkpoints``: ``step-00000600`` is finished; ``.writing-step-00000600-<pid>-<random>`` and
``.removing-...`` are on their way in and out, and are never read. Each change of state is one rename.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
import socket
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from mmkit.checkpoint import disk
from mmkit.checkpoint.disk import Folder, explained, make_durable, sync
from mmkit.checkpoint.manifest import MANIFEST, Manifest, step_of, verify
from mmkit.errors import CheckpointError

BACK_OFF = (0.2, 1.0, 3.0)
"""Seconds to wait before each further try after a fault that may pass."""
_MAY_PASS = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY)
_ASIDE = re.compile(r"\.(writing|removing)-(step-\d{8,12})-(\d+)-[0-9a-f]{8}")
_held: set[int] = set()


def checkpoints(run: Path) -> list[Path]:
    """The folders named as finished checkpoints, oldest first, whatever is in them."""
    parent = run / "checkpoints"
    found = [p for p in parent.iterdir() if step_of(p) is not None and p.is_dir()] if parent.is_dir() else []
    return sorted(found, key=lambda p: step_of(p) or 0)


def latest(run: Path) -> Path | None:
    """The newest checkpoint of a run whose every byte verifies; None where there is none.

    Warns of each newer one that does not, naming the file and what is wrong with it.
    """
    with explained(run, "cannot be read"):
        for path in reversed(checkpoints(run)):
            try:
                verify(path)
            except CheckpointError as error:
                warnings.warn(f"skipped a damaged checkpoint: {error}", stacklevel=2)
            else:
                return path
    return None


def publish(run: Path, step: int, fill: Callable[[Folder], None], describe: Callable[[Folder], Manifest]) -> Path:
    """Makes a finished checkpoint of what `fill` writes, sealed with the manifest that `describe` gives.

    It is durable when this returns. A fault of the disk that may pass is tried again. Raises `CheckpointError`, and then
    leaves nothing behind and everything else as it was.
    """
    parent = run / "checkpoints"
    final = parent / f"step-{step:08d}"
    with explained(final, "the checkpoint could not be written"):
        for wait in (*BACK_OFF, None):
            try:
                make_durable(parent)
                _publish_once(final, fill, describe)
                break
            except OSError as error:
                if wait is None or error.errno not in _MAY_PASS:
                    raise
                warnings.warn(f"{final}: {error}; trying again in {wait} s", stacklevel=2)
                time.sleep(wait)
    return final


def _publish_once(final: Path, fill: Callable[[Folder], None], describe: Callable[[Folder], Manifest]) -> None:
    aside = _beside(final, "writing")
    old = _beside(final, "removing")
    try:
        aside.mkdir()
        disk.phase("begun")
        folder = Folder(aside)
        fill(folder)
        disk.phase("filled")
        folder.text(MANIFEST, describe(folder).render())
        sync(aside)
        disk.phase("sealed")
        if final.exists():  # a damaged one, or one from before the run went back; a kill here is mended by `_recover`
            final.rename(old)
            disk.phase("displaced")
        aside.rename(final)
        disk.phase("renamed")
        sync(final.parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        if old.exists() and not final.exists():
            old.rename(final)
        raise
    shutil.rmtree(old, ignore_errors=True)
    disk.phase("durable")


def prune(run: Path, step: int, keep: int) -> None:
    """Removes what is older than the newest `keep` intact checkpoints up to `step`. What is newer is left alone.

    A fault while removing is a warning: what matters is already safe.
    """
    intact = 0
    for path in reversed([p for p in checkpoints(run) if (step_of(p) or 0) <= step]):
        if intact < keep:
            intact += _sound(path, deep=False)
            continue
        try:
            old = _beside(path, "removing")
            path.rename(old)
            disk.phase("set aside")
            for file in sorted(old.iterdir()):
                file.unlink()
                disk.phase("removed a file")
            old.rmdir()
        except OSError as error:
            warnings.warn(f"{path}: an old checkpoint could not be removed ({error})", stacklevel=2)


def _sound(path: Path, *, deep: bool) -> bool:
    try:
        verify(path, deep=deep)
    except CheckpointError:
        return False
    return True


def _beside(final: Path, state: str) -> Path:
    return final.with_name(f".{state}-{final.name}-{os.getpid()}-{secrets.token_hex(4)}")


@contextmanager
def lock(run: Path, *, wait: Callable[[str], None] | None = None) -> Iterator[None]:
    """Makes this process the only writer of a run folder, and clears away what a killed one left half done.

    The operating system drops the lock with the process, so a killed run never blocks the next one.
    While another holds it, `wait` is called with who that is before each further try. Raises `CheckpointError` that says
    who holds it where there is no `wait`.
    """
    with explained(run, "cannot be locked"):
        make_durable(run)
        while isinstance(descriptor := _try_lock(run / "lock"), str):
            holder = descriptor
            if wait is None:
                raise CheckpointError(
                    str(run), f"is in use by {holder}", "wait for it to end, stop it, or choose another run folder"
                )
            wait(holder)
    _held.add(descriptor)
    try:
        with explained(run, "cannot be prepared"):
            since = datetime.now().astimezone().isoformat(timespec="seconds")
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()} since {since}".encode(), 0)
            _recover(run)
        yield
    finally:
        if descriptor in _held:  # not so in a forked child, which must leave its parent's lock alone
            _held.remove(descriptor)
            os.close(descriptor)


def _try_lock(path: Path) -> int | str:
    """The descriptor that holds the lock, or who else does."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 200).decode(errors="replace") or "another process"
        os.close(descriptor)
        return holder
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _let_go_in_child() -> None:
    """A forked data worker must not keep the lock alive after its parent was killed."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_child)


def _recover(run: Path) -> None:
    """Finishes or removes what dead processes left. Only called under the lock.

    A leftover that is complete lacks nothing but its name, and gets it: it may be the only copy where a kill fell between
    the two renames that replace a checkpoint.
    """
    parent = run / "checkpoints"
    if not parent.is_dir():
        return
    for path in sorted(parent.iterdir(), reverse=True):  # ".writing" before ".removing"
        match = _ASIDE.fullmatch(path.name)
        if not match or path.is_symlink() or not path.is_dir() or _alive(int(match[3])):
            continue
        final = parent / match[2]
        if match[1] == "writing" and not final.exists() and _is_complete(path, step_of(final)):
            path.rename(final)
            sync(parent)
        else:
            shutil.rmtree(path)


def _is_complete(path: Path, step: int | None) -> bool:
    return (path / MANIFEST).exists() and _sound(path, deep=True) and verify(path, deep=False).step == step


def _alive(pid: int) -> bool:
    """Whether another process of that number runs. Our own number, met again here, was a process of an earlier boot."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
