"""Where a run's numbers are shown besides metrics.jsonl: `config.trackers='wandb() | mlflow()'`.

None needs an account by default: each keeps its records inside the run directory. What a tracker
does happens in a thread of its own (see `lmjax/channels.py`); a part only says how its library is
called.
"""
