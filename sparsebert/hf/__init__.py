"""Save sparse and compacted models with ``save_pretrained``, and load them with ``from_pretrained``.

This package imports nothing, so that ``import sparsebert`` does not load transformers
(``sparsebert.hf.import_hook``).
"""
