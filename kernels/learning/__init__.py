"""Self-play, reanalyse, and the replay buffer between them and the learner."""
