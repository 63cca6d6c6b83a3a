"""Gated convolutions, upsampling ones too: functions, reference, PyTorch and Triton implementations."""
