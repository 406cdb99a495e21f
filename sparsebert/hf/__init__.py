"""Hugging Face: sparse models that `save_pretrained` writes and `from_pretrained` loads.

Nothing is imported here: transformers is a library to wait for, see `sparsebert.hf.import_hook`.
"""
