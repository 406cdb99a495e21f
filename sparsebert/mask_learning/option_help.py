"""Help of the options that several methods have: one option of the command, one text."""

REWIND = {"help": "pretrained, or step, learning-rate (cap-structured's), none (standard's)"}
HEAD = {"help": "each round: rewind, keep (imp's, standard's) or fresh"}
SHARE = {"help": "--step is a share of the original or remaining"}
STEP = {"help": "share of weights pruned in a round, or a step of a search: 0.1; super-tickets 0.05"}
BATCHES = {"help": "batches of training data to look at: 32, SNIP 8"}
ACCUMULATE = {"help": "importance: gradients of masks never cleared, as published"}
SCORES_LEARNING_RATE = {"help": "of the scores, where masks are learned: 0.01; smp 0.02, l0 0.1"}
INITIAL_WARMUP = {"help": "times --warmup-steps: all is kept so long at the beginning; 1, cap 2"}
FINAL_WARMUP = {"help": "times --warmup-steps: the density stays so long at the end; 2, cap 3"}
THRESHOLD = {
    "help": "soft-movement, mask T of smp: what scores must exceed, 0.1; importance-search, "
    "magnitude-search: share of the metric to hold, 0.9"
}
REGULARISATION = {"help": "weight of the penalty on scores: 400, l0 125, movement 0"}
