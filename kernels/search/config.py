"""The settings of a search."""

from __future__ import annotations

from typing import NamedTuple

from kernels.search.tree import REUSE_OFF

GUMBEL, PUCT, MARKET, WIDENING = range(4)  # how a search chooses: see also market_tree and widening


ALGORITHMS = ("gumbel", "puct", "market", "widening")


class SearchConfig(NamedTuple):
    """What a search is told, coerced once by `new_search_config`."""

    num_simulations: int
    max_considered_actions: int  # m, root actions that enter the halving
    discount: float  # per bar
    c_visit: float
    c_scale: float
    q_scale: float  # S: Q is divided by this slow running scale
    rescale_values: bool  # min-max of completed Q, as mctx does by default
    stochastic: bool  # chance nodes between decisions
    expectation_backup: bool  # expand all codes of an afterstate at once and back up their expectation
    reverse: bool  # an open position may be turned in one action
    mae_penalty: float  # k of the `amddp` reward; 0 is `pnl`, which forgets where a position was entered
    value_reuse: int  # NOTHING, CHANCE_CHILD or KNOWN_ARM of kernels.tree
    algorithm: int  # GUMBEL, PUCT, MARKET or WIDENING
    dirichlet_fraction: float  # of Dirichlet noise in the root's prior, under PUCT
    dirichlet_alpha: float  # its concentration
    num_sampled_sizes: int  # sizes of each side at the root, under WIDENING


def new_search_config(
    num_simulations: int = 16,
    max_considered_actions: int = 4,
    discount: float = 0.99,
    c_visit: float = 50.0,
    c_scale: float = 0.1,
    q_scale: float = 1.0,
    rescale_values: bool = False,
    stochastic: bool = True,
    expectation_backup: bool = True,
    reverse: bool = False,
    mae_penalty: float = 0.0,
    value_reuse: int = REUSE_OFF,
    algorithm: int = GUMBEL,
    dirichlet_fraction: float = 0.25,
    dirichlet_alpha: float = 0.3,
    num_sampled_sizes: int = 4,
) -> SearchConfig:
    """The `forex` defaults; `parity` with mctx is rescale=True, full_width=False."""
    return SearchConfig(
        int(num_simulations),
        int(max_considered_actions),
        float(discount),
        float(c_visit),
        float(c_scale),
        float(q_scale),
        bool(rescale_values),
        bool(stochastic),
        bool(expectation_backup),
        bool(reverse),
        float(mae_penalty),
        int(value_reuse),
        int(algorithm),
        float(dirichlet_fraction),
        float(dirichlet_alpha),
        int(num_sampled_sizes),
    )
