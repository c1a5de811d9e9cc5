"""One decision after another, and the risk limits on them."""
