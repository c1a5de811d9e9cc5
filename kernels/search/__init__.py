"""Search: trees, the rules that walk them, and the networks they ask."""
