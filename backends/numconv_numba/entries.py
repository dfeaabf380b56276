"""Places in the table of tools: compiled functions that drivers call by address, and the lanes of a vector; see `tools`."""

LANES, SPLIT, TRANSPOSE, PRODUCT, PACK, PACK_WEIGHTS, WRITE, READ, WRITE_WEIGHTS, MULTIPLY, COUNT = range(11)
