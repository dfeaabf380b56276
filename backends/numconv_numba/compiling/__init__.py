"""How kernels come into being: functions on raw addresses, compiled by Numba in units, kept on disk."""
