"""Checkpoints that can be trusted: what was saved is what is restored, or nothing is.

saver.py     Checkpointer: asynchronous saves by orbax, strict restores, retention
scan.py      which steps a directory holds, and in what state
reader.py    arrays of one step, without the config or the classes of the run
manifest.py  what was saved, file by file and array by array
tree.py      names of arrays
tool.py      python -m lmjax.checkpoint inspect|verify|diff|export
"""

from lmjax.checkpoint.saver import CheckpointError, Checkpointer

__all__ = ['CheckpointError', 'Checkpointer']
