"""Batches of decoded images from a dataset and a sampler.

No torch is imported here: DALI's reader processes import this package, and need none.
"""
