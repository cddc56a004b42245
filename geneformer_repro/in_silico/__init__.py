"""Questions to a model.

::

reading        the only evaluation forward: hidden states, vectors, outputs, derivatives
     └────────► in_silico       edit ids → read both → shifts → statistics │ attention → gene networks
"""
