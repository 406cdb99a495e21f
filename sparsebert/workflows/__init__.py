"""What the commands do, as functions: train, evaluate, transfer and export."""
