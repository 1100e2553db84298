"""Assignments of tokens to experts under equal loads."""

from lmjax.kernels.assignment.auction import balanced as balanced
