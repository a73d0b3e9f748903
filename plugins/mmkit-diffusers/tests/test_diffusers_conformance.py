"""The parts of this package pass the tests that mmkit's own parts pass."""

from mmkit.testing import conformance

test_conformance = conformance("mmkit-diffusers")
