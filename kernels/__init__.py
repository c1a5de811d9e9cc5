"""What is compiled and pure.

Letters used for shapes throughout: B searches or rows, N nodes, A actions, C chance codes, W = max(A, C) edges,
E candidates of a widened node, T bars, K unroll steps, D width of a latent
or, in a tree, of all that a node's network remembers (its state), F features of a bar, P features of a position,
V value bins, R replay capacity.
A module imports lower floors only; tests/test_floors.py lists the floors.
"""
