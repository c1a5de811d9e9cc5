"""Files of bars: what their format is, what their lines mean, what is wrong with them."""
