"""From bars to a trained model: data set, trainer, run directory."""
