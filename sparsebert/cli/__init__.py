"""The `sparsebert` command: one file per command, put together in `app`."""
