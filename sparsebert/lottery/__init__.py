"""The lottery: rounds of training, pruning and rewinding that find a ticket and can resume at any point."""
