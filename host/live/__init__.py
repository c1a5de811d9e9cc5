"""Acting beside money: the feed, the risk engine, the journal and the target file."""
