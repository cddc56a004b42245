"""From a checkpoint and labels to a classifier, and to the truth about it.

::

Checkpoint            network + vocabulary + head + provenance, one directory
     ├────────► finetuning      a problem (what a row is) × a kind (what a label is) → one table of methods
"""
