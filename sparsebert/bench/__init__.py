"""The benchmark: what a ticket gains in time and memory against the best dense alternatives on this machine.

`workload` says what is run, `providers` who runs it, `gate` whether the answers agree, `timer` how long each
side takes in paired rounds, `memory` what each side holds, `record` keeps one row a result with the machine
it came from.
"""
