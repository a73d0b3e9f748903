"""Makes the helpers beside these tests, and the tiny recipes of the model's tests, importable here."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "model"))
