"""Checkpoints that can be trusted: what was saved is what is restored, or nothing is.

saver.py     Checkpointer: asynchronous saves by orbax, retention
reader.py    what a directory offers, and strict restores
scan.py      which steps a directory holds, and in what state
room.py      what is deleted, and what is renamed aside
arrays.py    arrays of one step, without the config or the classes of the run
manifest.py  what was saved, file by file and array by array
content.py   what a manifest may say
tree.py      names of arrays
tool.py      python -m lmjax.checkpoint inspect|verify|diff|export, with compare.py and show.py
"""

from lmjax.checkpoint.saver import CheckpointError, Checkpointer

__all__ = ['CheckpointError', 'Checkpointer']
