"""Matrix tiles (AMX): whether the processor has them, and what dense convolution becomes on them."""
