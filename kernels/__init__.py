"""What is compiled and pure: the market, the search, self-play and the risk limits, over flat arrays.

The letters of array shapes, for the whole program:

    B  searches that run together, or windows of a training batch
    N  nodes of a tree
    A  actions;  C  chance codes;  E  edges of a node, max(A, C);  W  E rounded up to whole SIMD vectors
    J  candidates of a node under progressive widening
    M  position hypotheses of a market tree
    T  bars of a series;  L  bars of an episode;  R  episodes in the replay buffer;  K  unroll steps
    F  features of a bar;  P  features of a position
    D  width of a latent;  H  hidden units;  S  width of a node's state: its latent and what the dynamics remember
    V  bins of a value or of a reward

Any other width is spelled out.  Reading order: `market`, `search`, `learning`, `live`.  A module imports lower folders
only: jit, ort, simd and rng; then market and environments; then search; then learning and live.
"""
