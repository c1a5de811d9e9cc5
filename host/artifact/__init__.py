"""The model file: what it holds, how it is checked, and the networks loaded from it."""
