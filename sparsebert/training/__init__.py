"""Training of a ticket with Hugging Face's Trainer: masks outside the model, exact snapshots for rewinding."""
