"""The settings of a search."""

from __future__ import annotations

from typing import NamedTuple

from kernels.search.tree import NOTHING

GUMBEL, PUCT, MARKET, WIDENING = range(4)  # how a search chooses: see also market_tree and widening


RULES = ("gumbel", "puct", "market", "widening")


class SearchConfig(NamedTuple):
    """What a search is told, coerced once by `new_search_config`."""

    simulations: int
    considered: int  # m, root actions that enter the halving
    discount: float  # per bar
    c_visit: float
    c_scale: float
    value_unit: float  # S: Q is divided by this slow running scale
    rescale: bool  # min-max of completed Q, as mctx does by default
    stochastic: bool  # chance nodes between decisions
    full_width: bool  # expand all codes of an afterstate at once and back up their expectation
    reverse: bool  # an open position may be turned in one action
    excursion_weight: float  # k of the `amddp` reward; 0 is `pnl`, which forgets where a position was entered
    reuse: int  # NOTHING, CHANCE_CHILD or KNOWN_ARM of kernels.tree
    rule: int  # GUMBEL, PUCT, MARKET or WIDENING
    noise_share: float  # of Dirichlet noise in the root's prior, under PUCT
    noise_alpha: float  # its concentration
    samples: int  # sizes of each side at the root, under WIDENING


def new_search_config(
    simulations: int = 16,
    considered: int = 4,
    discount: float = 0.99,
    c_visit: float = 50.0,
    c_scale: float = 0.1,
    value_unit: float = 1.0,
    rescale: bool = False,
    stochastic: bool = True,
    full_width: bool = True,
    reverse: bool = False,
    excursion_weight: float = 0.0,
    reuse: int = NOTHING,
    rule: int = GUMBEL,
    noise_share: float = 0.25,
    noise_alpha: float = 0.3,
    samples: int = 4,
) -> SearchConfig:
    """The `forex` defaults; `parity` with mctx is rescale=True, full_width=False."""
    return SearchConfig(
        int(simulations),
        int(considered),
        float(discount),
        float(c_visit),
        float(c_scale),
        float(value_unit),
        bool(rescale),
        bool(stochastic),
        bool(full_width),
        bool(reverse),
        float(excursion_weight),
        int(reuse),
        int(rule),
        float(noise_share),
        float(noise_alpha),
        int(samples),
    )
