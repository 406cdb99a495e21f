"""The `sparsebert` command: one file a command."""
