"""Importing this module registers every one-shot method."""

from sparsebert.one_shot.methods import alps, fisher_units, obert, obs, sparsegpt, wanda, ziplm

__all__ = ["alps", "fisher_units", "obert", "obs", "sparsegpt", "wanda", "ziplm"]
