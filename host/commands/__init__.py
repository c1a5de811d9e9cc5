"""One file a command of `swt.py`."""
