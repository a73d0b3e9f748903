"""Every built-in component passes the conformance kit, whatever its kind: what a plugin is held to holds for mmkit first."""

from __future__ import annotations

from mmkit.testing import conformance

test_conformance = conformance("mmkit")
