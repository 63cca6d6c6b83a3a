"""Region-keyword matching: functions, definitions, PyTorch and Triton implementations."""
