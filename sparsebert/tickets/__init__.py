"""Tickets: masks with their provenance, in memory, on disk and on models."""

# Name of the ticket in the folder of a run or of a model.
TICKET_FILE = "ticket.safetensors"
