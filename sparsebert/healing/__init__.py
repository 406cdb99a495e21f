"""Healing: a pruned model learns to answer as the dense model does, without labels."""
