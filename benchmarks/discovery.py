"""How long `mmkit list` and `mmkit --help` take with many plugins installed, some of them broken: the crowd of tests/plugins.

    python benchmarks/discovery.py --plugins 200

Processor time over a bare interpreter's, the least of three runs.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "plugins"))
from crowd import crowd
from distributions import Site

CODE = "from mmkit.cli import main; main()"


def seconds(path: str, *arguments: str) -> float:
    """Processor seconds of one run, the least of three."""

    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        env = {**os.environ, "PYTHONPATH": path}
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True, env=env)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return min(once() for _ in range(3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plugins", type=int, default=200)
    plugins = parser.parse_args().plugins
    here = os.environ.get("PYTHONPATH", "")
    with tempfile.TemporaryDirectory() as folder:
        crowd(Site(Path(folder)), plugins)
        bare = seconds(here, "-c", "pass")
        for arguments in (["--help"], ["list"]):
            without = seconds(here, "-c", CODE, *arguments) - bare
            with_all = seconds(os.pathsep.join((folder, here)), "-c", CODE, *arguments) - bare
            print(f"mmkit {arguments[0]:8} {without:.3f} s alone, {with_all:.3f} s with {plugins} plugins")


if __name__ == "__main__":
    main()
