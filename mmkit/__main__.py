"""``python -m mmkit``."""

from mmkit.cli import main

main()
