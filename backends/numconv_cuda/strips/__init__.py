"""Kernels written out for strips of results: few channels a group, pooling, windows."""
