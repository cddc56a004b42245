"""Questions to a model.

::

embedding      hidden states → gene and cell vectors, attention
     └────────► in_silico       edit ids → embed both → shifts → statistics → table; attention → network
"""
