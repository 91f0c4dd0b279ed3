"""Estimates of a run's memory, steps and hours, without weights."""

from lit_tr.planning.plan import Lengths, Memory, Plan, Run

__all__ = ["Lengths", "Memory", "Plan", "Run"]
