"""Live trading: the agent, the risk limits, the journal and the target file that a bridge reads.  Map: README.md."""
