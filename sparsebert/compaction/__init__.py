"""What ``sparsebert.compact`` is made of: rules on matrices, then the modules that run what these leave."""
