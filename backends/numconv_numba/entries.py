"""Places in the table of tools: compiled functions that drivers call by address, and the lanes of a vector; see `tools`."""

(
    LANES, COPY, SPLIT, PACK, READ_ROWS, READ_SQUARES, READ_WORDS, WRITE_SQUARES, DRESS, PRODUCT, MULTIPLY, PACK_WEIGHTS,
    WRITE, READ, WRITE_WEIGHTS, INPUT, WEIGHT, OUTPUT, GRADIENT, KERNEL, PIXELS, DOTS, LINES, CONFIGURE, RELEASE, CONFIGURATION,
    FUSED, HALVE, COUNT,
) = range(29)  # fmt: skip
