"""Ray: many machines for one training, or for many (an extra; nothing else imports this package)."""
