"""Why a model says what it says, and whether to believe it.

::

reading        the only evaluation forward: outputs, and derivatives by what goes in
     └────────► in_silico/explanations   hiding, gradients, surrogates → genes of cells → genes of donors → gene sets

`enrichment` and `drivers` ask of any table of genes which sets and lists its strongest genes are of; both need no model.
"""
