"""What crosses a seam: the shared value types and one abstract class per kind of part. See docs/contracts.md."""
