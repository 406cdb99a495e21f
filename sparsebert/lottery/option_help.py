"""Help texts of the options that several methods share."""

REWIND = {
    "help": "state that each round starts from: pretrained (the initial weights), step (the weights at "
    "--rewind-step), learning-rate (the trained weights, with a new schedule) or none (the trained weights, "
    "with one schedule for all rounds)"
}
HEAD = {
    "help": "task head at the start of each round: rewind (to the start of the run), keep (the trained head) "
    "or fresh (a new one)"
}
SHARE = {
    "help": "weights that --step is a share of: original or remaining",
    "flag": "--step-relative-to",
}
STEP = {"help": "share of the weights or units pruned in each round or search step"}
BATCHES = {"help": "number of training batches to compute scores on"}
ACCUMULATE = {"help": "never clear the gradients of the masks, as published"}
SCORES_LEARNING_RATE = {"help": "learning rate of the mask scores"}
INITIAL_WARMUP = {
    "help": "length of the dense phase at the start, in multiples of --warmup-steps, or of a tenth of the "
    "run without a warm-up"
}
FINAL_WARMUP = {"help": "length of the phase at the final density, in the same multiples"}
REGULARISATION = {"help": "weight of the penalty on the mask scores"}
