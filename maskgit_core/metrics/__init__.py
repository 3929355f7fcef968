"""Metrics: features or image pairs in, numbers out; one file each, class `Metric`.

Contract: `update(...)` takes a batch, `merge(other)` adds another metric's batches, `compute() -> dict[str, float]`.
Sums are kept in float64. What the numbers mean is fixed by a protocol, which is stored with them.
"""
