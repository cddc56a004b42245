"""From a checkpoint and labels to a classifier, and to the truth about it.

::

Checkpoint            weights + vocabulary + provenance, one directory
     ├────────► finetuning      head on Checkpoint → Checkpoint + metrics with intervals, beside baselines
"""
