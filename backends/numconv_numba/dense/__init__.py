"""Dense convolution and its gradients: blocks of results, packed factors, register tiles."""
