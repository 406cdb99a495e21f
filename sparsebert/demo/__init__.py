"""A pruned BERT runs faster here and now: `python -m sparsebert.demo`."""
