"""The only training loop, under the three workflows' networks.

::

     loop        `transformers.Trainer`, with what it lacks: equal steps, exact resuming, checkpoints that are whole
      ├── config     how to train, as `TrainingArguments`
      └── log        the bar, a line of JSON and a point of TensorBoard for every entry, the share of the machine's peak
"""
