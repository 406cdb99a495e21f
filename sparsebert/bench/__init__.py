"""The benchmark: time and memory of a pruned model against the best dense alternatives on this machine.

``workload`` defines the model and its batches, ``pruned_model`` applies a ticket, ``providers`` holds the
backends that run it, and ``output_check`` compares their outputs. ``timer`` times the backends in paired
rounds, ``contention`` and ``memory`` watch the machine, ``environment`` describes it, and ``runner`` makes
one record for each backend.
"""
