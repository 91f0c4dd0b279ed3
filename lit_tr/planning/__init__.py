"""What a run will take, before it is run: memory, steps and hours."""

from lit_tr.planning.plan import Lengths, Memory, Plan, Run

__all__ = ["Lengths", "Memory", "Plan", "Run"]
