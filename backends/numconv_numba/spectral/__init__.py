"""Convolution by fast Fourier transforms.

``fft`` has the implementations. ``overlap`` cuts a problem into blocks, ``transforms`` takes these through all steps with SciPy's
transforms, and ``spectra`` has the kernels around them. What transforms would spoil is computed otherwise: ``bands`` are results of
few terms at the borders, ``nonfinite`` finds the results that NaN and infinities reach. ``folded`` serves gradients with padding
modes.
"""
