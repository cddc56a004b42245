"""Gene networks out of a model.

::

reading        the only evaluation forward: what every block attends with
     └────────► in_silico/networks   attention, or deletions → sums of pairs → gene effects out → edges → evaluated

`network` makes them and `gene_network` is what is made; `network_evaluation` scores them on known edges,
`network_statistics` compares two states over donors, `heads` asks which heads attend to which genes.
"""
