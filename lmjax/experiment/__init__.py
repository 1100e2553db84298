"""Experiments: a baseline and treatments, tuned alike, become evidence. See `declare`."""

from lmjax.experiment.claims import AsGood
from lmjax.experiment.claims import Better
from lmjax.experiment.claims import Faster
from lmjax.experiment.declare import Arm
from lmjax.experiment.declare import Experiment
from lmjax.experiment.declare import Scale

__all__ = ['Arm', 'AsGood', 'Better', 'Experiment', 'Faster', 'Scale']
