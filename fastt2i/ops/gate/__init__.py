"""The gate, act(f) * sigmoid(g): function, definition, PyTorch and Triton implementations."""
