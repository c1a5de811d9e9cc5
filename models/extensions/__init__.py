"""Extensions of the default networks: one file each, listed in `registry`, by the contract of `models.extension`."""
