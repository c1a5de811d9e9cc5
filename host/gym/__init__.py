"""The market for agents of other libraries, with the interfaces of Gymnasium (`pip install '.[gym]'`)."""
