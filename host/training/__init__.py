"""From bars to a trained model: data, the loop of iterations, checkpoints."""
