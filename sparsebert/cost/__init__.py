"""Cost models: what a mask costs in each format on a CPU or a GPU."""
