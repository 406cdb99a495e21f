"""Tickets: masks with their provenance, in memory, on disk and on models."""
