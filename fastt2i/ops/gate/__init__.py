"""The gate, act(f) * sigmoid(g): function, reference, PyTorch and Triton implementations."""
