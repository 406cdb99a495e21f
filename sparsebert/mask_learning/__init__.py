"""Mask learning: one rule per method, and the learner that applies a rule to a model in training."""
