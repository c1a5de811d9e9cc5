"""`SearchConfig`: the settings of a search."""

from __future__ import annotations

from typing import NamedTuple

from kernels.jit import constructor
from kernels.search.tree import REUSE_OFF

GUMBEL, PUCT, MARKET, WIDENING = range(4)
ALGORITHMS = ("gumbel", "puct", "market", "widening")  # names of the four, in their order


class SearchConfig(NamedTuple):
    """Settings of a search.  `new_search_config` makes one; the defaults are those of a search of a market.

    A search with the conventions of mctx has `rescale_values` and no `expectation_backup`.
    """

    num_simulations: int = 16
    max_considered_actions: int = 4  # m, root actions that enter sequential halving
    discount: float = 0.99  # per bar
    c_visit: float = 50.0  # mctx: maxvisit_init
    c_scale: float = 0.1  # mctx: value_scale
    q_scale: float = 1.0  # every Q is divided by it
    rescale_values: bool = False  # completed Q are scaled to [0, 1] by their minimum and maximum, as in mctx
    stochastic: bool = True  # a chance node stands between two decision nodes
    expectation_backup: bool = True  # an afterstate is added with all its codes, and its value is their expectation
    reverse: bool = False  # one action may turn an open position into the opposite one
    mae_penalty: float = 0.0  # of the `amddp` reward; 0: the reward is `pnl`, which forgets the entry of a position
    exact_rewards: bool = True  # a market's `pnl` is computed; else, and in a game, rewards are the network's
    value_reuse: int = REUSE_OFF  # REUSE_OFF, REUSE_CHANCE_CHILD or REUSE_KNOWN_ARM; WIDENING ignores it
    algorithm: int = GUMBEL  # GUMBEL, PUCT, MARKET or WIDENING
    dirichlet_fraction: float = 0.25  # weight of Dirichlet noise in the prior of the root, under PUCT
    dirichlet_alpha: float = 0.3  # concentration of that noise
    num_sampled_sizes: int = 2  # sizes of a side at the root, under WIDENING: the full one, then draws
    position_adjustment: bool = False  # an entry may change the size of an open position on its side
    linear_values: bool = False  # MARKET: the network values flat and the largest size alone: `read_children`


@constructor(SearchConfig)
def new_search_config(config: SearchConfig) -> SearchConfig:
    """The settings given, each of the type of its field, and the defaults of the others."""
    return config


def nodes_needed(config: SearchConfig, codes: int) -> int:
    """Nodes of a tree of actions and codes after all its simulations."""
    return 1 + config.num_simulations * (1 + codes if config.expectation_backup else 1)
