"""Bars, the ledger, features and chance codes: the environment."""
