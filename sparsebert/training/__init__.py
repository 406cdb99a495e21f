"""Training of a ticket with Hugging Face's Trainer, with masks outside the model and exact snapshots."""
