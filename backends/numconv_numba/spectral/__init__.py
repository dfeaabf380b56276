"""Convolution by fast Fourier transforms."""
