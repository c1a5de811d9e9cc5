"""The environment: bars, trading hours, the ledger, features and chance codes."""
