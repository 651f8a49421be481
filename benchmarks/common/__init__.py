"""What the benchmarks of both papers share: how they are run, what they measure."""
