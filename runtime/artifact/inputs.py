"""What one step of `forward` takes and gives, and how much of it."""

MAXIMA_BLOCK = 64  # logits of a row; `forward` also gives the largest of each such block
MAX_STEPS = 8  # of the model in one step of the engine, each on the tokens that the one before chose; `forward` gives those of as many
