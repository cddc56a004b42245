"""The only training loop, under the three workflows' networks.

::

     loop        `transformers.Trainer`, with what it lacks: equal steps, exact resuming, checkpoints that are whole
      ├── config     how to train, as `TrainingArguments`
      └── log        the bar, a line of JSON and a point of TensorBoard for every entry, the share of the machine's peak
"""

import logging


def _is_news(record: logging.LogRecord) -> bool:
    return "gemm_4bit_forward" not in record.getMessage()


# Trainer imports peft, and that bitsandbytes, which greets every user of a CPU with a kernel that nobody asked for.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_is_news)
