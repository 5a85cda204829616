"""Which batch size to use: a few cheap measurements, and what follows from them.

| file | what is in it |
|---|---|
| `lab.py` | where measurements come from: training runs, within a budget of time |
| `memory.py` | the bytes of a step by batch size, and the largest batch that fits |
| `measure.py` | the measurements, in their order, as far as the budget goes |
| `race.py` | short runs among them, by which rates and batch sizes are compared first |
| `target.py` | the runs to the target among them: which rates and which batch sizes |
| `curves.py` | updates to the target and time of an update by batch size: the likeliest, and draws |
| `advice.py` | the setting that follows: predictions, what binds, how sure it is |
"""
