"""Gated convolutions, upsampling ones too: functions, definitions, PyTorch and Triton implementations."""
