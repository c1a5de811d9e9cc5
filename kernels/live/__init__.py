"""The step of live trading: one decision, and the risk limits on its target."""
