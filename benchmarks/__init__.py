"""Speed and quality claims, each a figure against its goal: ``python -m benchmarks.<name> [--quick]``."""
