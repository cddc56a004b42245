"""Counts to tokens: the first row of the way the data goes.

::

     .h5ad / .loom / .zarr / 10x      raw counts, cells × genes
          │ tokenizer      depth-normalise → divide by the gene's non-zero median → rank → truncate
          ▼
     TokenizedDataset      one row a cell: input_ids, length, cell id, obs columns (Arrow on disk)

Nothing here imports torch.
"""
