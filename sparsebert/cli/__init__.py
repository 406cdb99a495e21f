"""The `sparsebert` command: one file per command, assembled in `app`."""
