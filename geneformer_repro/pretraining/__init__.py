"""From cells to a model of them.

::

Checkpoint            weights + vocabulary + provenance, one directory
     ├────────► pretraining     mask 15 % → loss at masked positions → Checkpoint
"""
