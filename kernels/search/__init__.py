"""Search over B roots with your own networks: `OnnxNetworks(graphs, shape).planner(roots, config)`, then `plan`.

`__all__` is the public surface; kernels/README.md has a line for each name.  A name is imported when it is first used:
who asks for the settings of a search does not wait for the compiler.
"""

from importlib import import_module
from typing import Any

_MODULES = {
    "kernels.ort": ("OrtError", "check_status"),
    "kernels.search.config": ("SearchConfig", "new_search_config", "GUMBEL", "PUCT", "MARKET", "WIDENING"),
    "kernels.search.networks": ("NETWORKS", "NetworkShape", "Networks", "graph_widths"),
    "kernels.search.onnx_networks": ("OnnxNetworks",),
    "kernels.search.planner": ("Planner", "draw_noise", "new_planner", "plan", "set_root"),
}
__all__ = [name for names in _MODULES.values() for name in names]


def __getattr__(name: str) -> Any:
    """A public name, from the module that defines it (PEP 562)."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__} has no attribute {name}")
