"""How a step is run: eager, captured, compiled, in parts, profiled."""
