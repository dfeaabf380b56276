"""Pooling, padding, unfold, fold, max_unpool, and their gradients."""
