"""Makes the made-up run folders of the comparison's tests importable here."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "ablate"))
