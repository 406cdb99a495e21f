"""Training with a fixed ticket: masks outside the model, exact copies of it, Hugging Face's Trainer."""
