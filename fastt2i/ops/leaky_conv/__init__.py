"""A convolution with a leaky ReLU, a shortcut and an average pooling: function, reference, implementations."""
