"""Self-play, reanalyse, and the replay buffer from which the learner draws."""
