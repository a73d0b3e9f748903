"""mmkit's own checks of every component of this package."""

from mmkit.testing import conformance

test_conformance = conformance("mmkit-taesd")
