"""What kernels do with elements, for the compiler and for the simulator."""
