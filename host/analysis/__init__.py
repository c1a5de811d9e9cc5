"""What a backtest is worth: statistics, costs, baselines, verdict and the report that shows them."""
