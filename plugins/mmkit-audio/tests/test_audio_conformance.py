"""mmkit's own checks, of every part here."""

from mmkit.testing import conformance

test_conformance = conformance("mmkit-audio")
