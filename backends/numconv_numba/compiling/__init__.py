"""How kernels come into being: functions on raw addresses, compiled by Numba in units, kept on disk.

``compiler``
    What the rest of the backend uses: `kernel` and `helper` declare functions, `invoke` calls one by its address, `statistics`
    counts compilations.
``tags``
    Compile-time constants, which travel in types.
``parts``
    The pipeline: functions are lowered one by one, and a library of them is optimised once.
``cache``
    Where libraries are kept.
"""
