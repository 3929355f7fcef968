"""A lab of its own outside the tree: light stages over numbers, used to test the orchestration without torch."""
