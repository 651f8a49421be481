"""The experiments of `benchmarks/deep_jko.py`: those of arXiv 2311.06700 and their cost.

Each is a generator of measures, called with a seed and whether to be quick.
"""
