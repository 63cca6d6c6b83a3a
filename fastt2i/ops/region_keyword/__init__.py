"""Region-keyword matching: functions, reference, PyTorch and Triton implementations."""
