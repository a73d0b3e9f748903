"""The zoo: recipes shipped with mmkit, named by their file."""

from collections.abc import Callable
from pathlib import Path

from mmkit.hooks import hookimpl


@hookimpl
def mmkit_recipes(register: Callable[[str, str], None]) -> None:
    """Registers every YAML file of this folder under its own name."""
    for path in sorted(Path(__file__).parent.glob("*.yaml")):
        register(path.stem, f"mmkit.recipes:{path.name}")
