"""What is compiled and pure.  Letters used for shapes throughout:

B searches or rows, N nodes, A actions, C chance codes, W = max(A, C) edges, S simulations, T bars, K unroll steps,
D latent width, F features of a bar, P features of a position, V value bins, R replay capacity.
Floors: `_jit`, `ort` < `rng`, `bars`, `position`, `tree` < `scatter`, `features`, `market`, `gumbel`, `replay` < `search`
< `selfplay`, `reanalyze`, `stats`.  A module imports lower floors only.
"""
