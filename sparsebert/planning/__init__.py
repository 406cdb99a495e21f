"""The plan: which layers become sparse, in which format, and what that gains here."""
