"""Walk-forward: an agent trained anew for each fold of a file, and the ledger of all trials."""
