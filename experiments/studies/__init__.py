"""Studies: many training runs, declared as jobs with a key, run one after the other, kept as rows of a file."""
