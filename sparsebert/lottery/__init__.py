"""The lottery: rounds of training, pruning and rewinding that end in a ticket, resumable at any point."""
