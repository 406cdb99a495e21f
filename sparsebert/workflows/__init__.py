"""The commands as functions: train, evaluate, transfer and export."""
