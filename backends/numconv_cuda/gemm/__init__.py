"""Convolution as a matrix product of gathered columns."""
