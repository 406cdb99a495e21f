"""The demo, ``python -m sparsebert.demo``: a pruned BERT runs faster on this machine."""
