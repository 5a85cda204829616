"""Recommends a batch size: makes a few cheap measurements, and chooses the setting that follows from them.

| file | contents |
|---|---|
| `lab.py` | the problem, and the source of the measurements: training runs within a budget of time |
| `findings.py` | the measurements so far |
| `runs.py` | options of a run, and what its row says |
| `memory.py` | bytes of a step by batch size, and the largest batch that fits |
| `measure.py` | the measurements, in their order, as far as the budget goes |
| `race.py` | short runs among them, which compare rates and batch sizes first |
| `target.py` | runs to the target among them: the search over rates and batch sizes |
| `curves.py` | updates to the target and time per update by batch size: the most likely curves, and draws |
| `advice.py` | the setting that follows: predictions, the constraint that binds, certainty |
| `run.py` | a recommendation from its question to its files |

Their records are in `experiments.records.evidence` and `experiments.records.recommendation`.
"""
