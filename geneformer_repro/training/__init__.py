"""The only training loop, under the three workflows' networks.

::

     loop        `transformers.Trainer`, with what it lacks: equal steps, exact resuming, checkpoints that are whole
      ├── config     how to train, as `TrainingArguments`
      └── log        the bar, a line of JSON and a point of TensorBoard for every entry, the share of the machine's peak
"""

import logging

_NO_NEWS = ("gemm_4bit_forward", "Setting accelerator to CPU")
"""What libraries that Trainer imports greet every user of a CPU with: a kernel that nobody asked for (bitsandbytes, by
way of peft), and that there is no accelerator (DeepSpeed, by way of accelerate)."""


def _is_news(record: logging.LogRecord) -> bool:
    return not any(text in record.getMessage() for text in _NO_NEWS)


for _library in ("bitsandbytes.backends.cpu.ops", "DeepSpeed"):
    logging.getLogger(_library).addFilter(_is_news)
