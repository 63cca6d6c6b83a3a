"""Choosing among implementations of an operator: the registry, measured times, and the checks before them."""
