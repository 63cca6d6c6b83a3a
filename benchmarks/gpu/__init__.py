"""What a GPU is measured by, and what can be known of a step without one."""
