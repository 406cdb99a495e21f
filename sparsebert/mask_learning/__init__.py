"""Masks that a model learns while it trains: one rule a method, and the learner that applies it."""
