"""The networks, the frozen language model, and model folders."""
