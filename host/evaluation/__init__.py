"""What a model earned: backtests, known markets and their optima."""
