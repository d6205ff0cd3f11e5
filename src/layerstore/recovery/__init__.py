"""Recovery: what an interruption left is gathered, decided on without a disk (``planner``), carried out (``executor``)."""
