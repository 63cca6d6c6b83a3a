"""Gated convolutions whose output is modulated and added to a residual: functions, reference, implementations."""
