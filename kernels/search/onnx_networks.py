"""`OnnxNetworks`: ONNX graphs as the networks of a search."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.ort import BoundGraph, GraphLayout, Session, check_status, evaluate
from kernels.search.config import MARKET, SearchConfig, new_search_config
from kernels.search.market_search import EXPANSION_BATCH, MAX_CALL_ROWS
from kernels.search.networks import NetworkShape, graph_widths, no_networks
from kernels.search.planner import Planner, new_planner


class OnnxNetworks:
    """ONNX graphs by their names in `NETWORKS`; every thread takes planners of its own from them.

    A graph computes `y` [rows, width] from `x` [rows, width], both float32, with the widths of `graph_widths`.
    """

    def __init__(self, graphs: Mapping[str, bytes], shape: NetworkShape) -> None:
        self.graphs, self.shape = dict(graphs), shape
        self._sessions = dict[str, Session]()

    def layout(self, name: str, config: SearchConfig) -> GraphLayout:
        """How the inputs and outputs of a graph lie in its rows."""
        return GraphLayout(*graph_widths(self.shape, config)[name])

    def root(self, rows: int) -> BoundGraph:
        """The network `root` bound for `rows` rows."""
        return self._bind("root", row_buckets(rows), new_search_config())

    def planner(self, roots: int, config: SearchConfig) -> Planner:
        """A planner of `roots` roots with the networks that its algorithm calls.

        Raises ValueError for graphs that are not those of such a search, OrtError for one that ONNX Runtime refuses.
        """
        C, networks = self.shape.codes, no_networks()
        rows = {"root": row_buckets(roots)}
        if config.algorithm == MARKET:
            batches = min(roots * EXPANSION_BATCH, max(1, MAX_CALL_ROWS // C))
            rows["market"] = [C * (i + 1) for i in range(batches)]
        else:
            if config.stochastic != ("afterstate" in self.graphs):
                raise ValueError("a search with afterstates wants networks for them, one without wants none")
            rows |= {name: row_buckets(roots) for name in ("afterstate", "afterstate_value") if name in self.graphs}
            rows["dynamics"] = row_buckets(min(roots * C, max(MAX_CALL_ROWS, C)))
            networks = networks._replace(code_preactivation=self._code_preactivation(config))
        bound: dict[str, Any] = {name: self._bind(name, counts, config) for name, counts in rows.items()}
        return new_planner(networks._replace(**bound), config, roots, self.shape)

    def _code_preactivation(self, config: SearchConfig) -> NDArray[np.float32]:
        """[C, preactivation] rows y of the network `code` for all codes; no columns without that network."""
        if "code" not in self.graphs:
            return no_networks().code_preactivation
        graph = self._bind("code", [self.shape.codes], config)
        np.fill_diagonal(graph.x, 1.0)
        check_status(evaluate(graph, self.shape.codes))
        return graph.y  # with room behind it, which `write_preactivation` needs

    def _bind(self, name: str, rows: list[int], config: SearchConfig) -> BoundGraph:
        """A network bound for the numbers of rows in `rows`."""
        if name not in self._sessions:
            if name not in self.graphs:
                raise ValueError(f"there is no graph {name}: the search has {', '.join(sorted(self.graphs))}")
            self._sessions[name] = Session(self.graphs[name])
        return self._sessions[name].bind(self.layout(name, config), rows)


def row_buckets(rows: int) -> list[int]:
    """Numbers of rows to bind: 1, 2, 4, multiples of 8, and `rows`.  A search seldom fills a power of two."""
    return [count for count in (1, 2, 4, *range(8, rows, 8)) if count < rows] + [rows]
