"""What is compiled and pure.

Letters used for shapes throughout: B searches or rows, N nodes, A actions, C chance codes, W = max(A, C) edges,
E candidates of a widened node, T bars, K unroll steps, D latent width, F features of a bar, P features of a position,
V value bins, R replay capacity.
A module imports lower floors only; tests/test_floors.py lists the floors.
"""
