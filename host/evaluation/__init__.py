"""What an agent earns: backtests, synthetic markets and their optimal policies."""
