"""A CUDA device that computes nothing, for the CPU build of torch: fake tensors take the path of a GPU."""
