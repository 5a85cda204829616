"""Recommends a batch size: makes a few cheap measurements, and chooses the setting that follows from them.

| file | contents |
|---|---|
| `lab.py` | the problem, and the source of the measurements: training runs within a budget of time |
| `findings.py` | the measurements so far |
| `runs.py` | the options of a run, and the figures read from its row |
| `memory.py` | the bytes of a step by batch size, and the largest batch that fits |
| `measure.py` | all measurements, in order, as far as the budget allows |
| `race.py` | the short runs, which compare rates and batch sizes first |
| `target.py` | the runs to the target: the search over rates and batch sizes |
| `curves.py` | updates to the target and time per update by batch size: the most likely curves, and draws |
| `advice.py` | the setting that follows: predictions, the constraint that binds, certainty |
| `run.py` | a whole recommendation: checks, measurements, advice, and the file of the result |

The records are in `experiments.records.evidence` and `experiments.records.recommendation`.
"""
