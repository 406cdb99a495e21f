"""Masks that are learned while a model trains: the rule of each method, and how rules meet a model."""
