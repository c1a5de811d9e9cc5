"""The commands of `swt.py`, one a file."""
