"""Experiments as data: a grid of ``sparsebert train`` commands in a YAML file, with a paper's numbers."""
