"""A generator's block of two modulated gated convolutions: function, reference, implementations."""
