"""What drives the kernels: files, clocks, threads and the terminal."""
