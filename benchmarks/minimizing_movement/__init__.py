"""The experiments of `benchmarks/minimizing_movement.py`: those of arXiv 2109.14851 and their cost.

Each is a generator of measures, called with a seed and whether to be quick.
"""
