"""What kernels' proofs have come to on this machine, remembered on disk: one small JSON file for each set of versions and GPU.

It lies in ``$XDG_CACHE_HOME/mmkit``, by default ``~/.cache/mmkit``, and may be deleted at any time. A file that cannot be read or
written costs nothing but the proofs' being made again.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from mmkit import discovery

log = logging.getLogger(__name__)
VERSION = 1
"""Of the form of the file."""


def folder() -> Path:
    """Where the files lie. Raises `RuntimeError` where there is no home."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmkit"


@functools.cache
def conditions(device: torch.device) -> dict[str, str]:
    """All that a verdict hangs on, but the kernel itself: another of any of these, and kernels are proved anew."""
    found = {
        "mmkit": discovery.version("mmkit") or "unknown",
        "sources": _sources(),
        "torch": torch.__version__,
        "triton": _triton(),
        "device": device.type,
    }
    if device.type == "cuda":
        found |= {
            "device": torch.cuda.get_device_name(device),
            "capability": "{}.{}".format(*torch.cuda.get_device_capability(device)),
            "driver": _driver(),
        }
    return found


@functools.cache
def _sources() -> str:
    """Of all kernels, and of what they are held against."""
    home = Path(__file__).parent
    total = hashlib.sha256()
    for path in sorted([*home.rglob("*.py"), *(home.parent / "sequence").glob("*.py")]):
        total.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()[:16]


def _triton() -> str:
    from mmkit.kernels import triton_launch  # triton is not there on every platform, and slow to import

    return triton_launch.VERSION


def _driver() -> str:
    try:  # Linux: its own version; elsewhere that of CUDA which it supports
        return Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except (OSError, IndexError):
        return str(torch._C._cuda_getDriverVersion())


def recall(device: torch.device, name: str) -> dict[str, Any] | None:
    """The verdict of that name for this device; None where there is none."""
    found = _read(device).get(name)
    right = isinstance(found, dict) and isinstance(found.get("passed"), bool) and isinstance(found.get("facts"), str)
    return found if right else None


def keep(device: torch.device, name: str, verdict: dict[str, Any]) -> None:
    """Writes a verdict beside those that are there. Of two processes that do so at once, one may write over the other's."""
    text = json.dumps(
        {"form": VERSION, "conditions": conditions(device), "verdicts": {**_read(device), name: verdict}}, indent=1
    )
    try:
        path = _path(device)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, written = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=".json", dir=path.parent)
        try:
            with os.fdopen(handle, "w") as file:
                file.write(text)
            Path(written).replace(path)
        except BaseException:
            Path(written).unlink(missing_ok=True)
            raise
    except (OSError, RuntimeError) as error:
        _say_once(
            f"what is known of kernels on this machine is not kept, and the next process finds it out again: {error}"
        )


def _read(device: torch.device) -> dict[str, Any]:
    """All verdicts for this device."""
    try:
        path = _path(device)
        found = json.loads(path.read_text())
        if found["form"] == VERSION and found["conditions"] == conditions(device):
            return dict(found["verdicts"])
        fact = f"{path} is of another form, or of other versions"
    except FileNotFoundError:
        return {}
    except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
        fact = f"{type(error).__name__}: {error}"
    _say_once(f"what is known of kernels on this machine cannot be read, and is found out again: {fact}")
    return {}


def _path(device: torch.device) -> Path:
    digest = hashlib.sha256(json.dumps(conditions(device), sort_keys=True).encode()).hexdigest()
    return folder() / f"kernels-{digest[:16]}.json"


@functools.cache
def _say_once(text: str) -> None:
    log.warning(text)
