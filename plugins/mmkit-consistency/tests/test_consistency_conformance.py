"""The head passes the tests that mmkit's own heads pass."""

from mmkit.testing import conformance

test_conformance = conformance("mmkit-consistency")
