"""Between tensors and pictures: pixels, grids, curves."""
