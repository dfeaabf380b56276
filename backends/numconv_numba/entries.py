"""Places in the table of tools: compiled functions that drivers call by address, and the lanes of a vector; see `tools`."""

(
    LANES, COPY, SPLIT, PACK, TRANSPOSE, PRODUCT, MULTIPLY, PACK_WEIGHTS, WRITE, READ, WRITE_WEIGHTS,
    INPUT, WEIGHT, OUTPUT, GRADIENT, KERNEL, DRESS, COUNT,
) = range(18)  # fmt: skip
