"""Environments as kernels over flat arrays, many at once; `batch_environment` has what one must have."""
