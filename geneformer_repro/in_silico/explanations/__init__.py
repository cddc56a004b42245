"""Why a model says what it says of a cell, and whether that is to be believed.

::

reading        the only evaluation forward: hidden states, outputs, derivatives
     └────────► in_silico/explanations   one number a cell → what each gene adds to it → genes over donors → tested

`answers` says what number is explained, `occlusions`, `gradients` and `surrogate` take it apart, `explain` does it for
many cells and `explanation` is what comes of it. `enrichment` and `drivers` ask of any table of genes which gene sets
and lists its strongest genes are of; both need no model.
"""
