"""Proof of speed: what is measured, and how."""
