"""How the command ends. A scheduler may start it again after RETRY; everything else needs a person.

0   done, or nothing was left to do
1   a check found something: damage (checkpoint verify), a difference (diff), trials that failed
2   what the user gave cannot be used (config, files, directory), or the processes of a run do not
    agree about it; nothing was trained
65  training broke down: too many updates in a row were refused; the last checkpoint is whole
74  a checkpoint could not be written
75  stopped by a signal after saving, or hung (watchdog), or another process was lost or did not
    come (`parallel/alive.py`): the same command goes on
other  a bug in lmjax, with a traceback

Where one of several processes ends for a reason of its own, the others end with its status.
"""

USER = 2
BROKEN = 65  # EX_DATAERR of sysexits.h
DISK = 74  # EX_IOERR
RETRY = 75  # EX_TEMPFAIL
# What --help says, of commands that train and of those that do not.
TRAINING = """exit status: 0 done, 2 what was given cannot be used, 65 training broke down,
74 not written, 75 start the same command again; all are in the README"""
PLAIN = 'exit status: 0 done, 2 what was given cannot be used, in one sentence'


class DiskError(RuntimeError):
  """Something of the run could not be written; the message names it. It may be tried again."""

  status = DISK


class Ended(BaseException):
  """The run ends here for a reason that one sentence tells; `status` is the exit status.

  Not an Exception: a signal raises it anywhere, and no handler of errors may take it for one.
  """

  def __init__(self, status: int, text: str):
    super().__init__(text)
    self.status = status
