"""Tickets and checkpoints of other projects."""
