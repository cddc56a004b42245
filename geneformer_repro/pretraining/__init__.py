"""From cells to a model of them.

::

Checkpoint            network + vocabulary + head + provenance, one directory
     ├────────► pretraining     mask 15 % → loss at masked positions → Checkpoint
"""
