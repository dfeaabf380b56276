"""Matrix tiles (AMX): whether the processor has them, and what dense convolution becomes on them.

``amx`` asks the processor and the system, ``layers`` parts factors into bfloat16 numbers; ``tiled_gemm`` is `implicit_gemm` of
the folder ``dense`` on tiles, ``tiled_weights`` its weight gradient. The instructions, and their emulation for tests, are in
`microkernels.amx`.
"""
