"""What CPUs and GPUs can do, and which of them to use."""
