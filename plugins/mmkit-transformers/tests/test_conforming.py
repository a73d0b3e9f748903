"""The parts pass mmkit's own conformance kit."""

from mmkit.testing import conformance

test_conformance = conformance("mmkit-transformers")
