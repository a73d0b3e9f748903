"""How long `mmkit list` and `mmkit --help` take with many plugins installed, none of which is imported.

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

CODE = "from mmkit.cli import main; main()"


def write(root: Path, number: int) -> None:
    """One distribution with a head, a recipe and a command; importing it ends the process."""
    name = f"mmkit_stranger{number}"
    (root / name).mkdir()
    (root / name / "__init__.py").write_text('raise SystemExit("imported")\n')
    part = f'"""A part."""\n\n\nclass Part:\n    """Part {number} of a stranger."""\n\n\ndef command():\n    """Does nothing."""\n'
    (root / name / "parts.py").write_text(part)
    (root / name / f"tiny-{number}.yaml").write_text(f"# Recipe {number} of a stranger.\nmodel: {{}}\n")
    info = root / f"{name}-1.{number}.dist-info"
    info.mkdir()
    requires = "Requires-Dist: mmkit>=0.1,<2\nRequires-Dist: torch>=2.11\n"
    described = "\n# A readme\n" * 200
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: mmkit-stranger{number}\nVersion: 1.{number}\n{requires}\n{described}"
    )
    lists = [f"head.part{number} = {name}.parts:Part", f"recipe.tiny-{number} = {name}"]
    lists += [f"command.do{number} = {name}.parts:command"] if number < 5 else []
    (info / "entry_points.txt").write_text("\n".join(["[mmkit]", *lists, ""]))


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
        for number in range(plugins):
            write(Path(folder), number)
        bare = seconds(here, "-c", "pass")
        for arguments in (["--help"], ["list"]):
            without = seconds(here, "-c", CODE, *arguments) - bare
            with_all = seconds(os.pathsep.join((folder, here)), "-c", CODE, *arguments) - bare
            print(f"mmkit {arguments[0]:8} {without:.3f} s alone, {with_all:.3f} s with {plugins} plugins")


if __name__ == "__main__":
    main()
