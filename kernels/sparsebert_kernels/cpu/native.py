"""Loads the native CPU library on first use and calls it."""

from __future__ import annotations

import torch


def available(): return False
def instruction_set(): return "none"
def instruction_sets(): return ()
def why_unavailable(): return "not built"
def serves(format, dtype, x): return False
def linear(x, packed, biases, activation): raise NotImplementedError
