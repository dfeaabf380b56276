"""From Python functions to launches: the compiler, kernels on disk, recorded launches, the simulator."""
