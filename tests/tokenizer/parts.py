"""Parts of a corpus that do not end as they should, for workers, which import this and not what tests import."""

import os
import signal
import time

from geneformer_repro.tokenizer import corpus

_do_elsewhere = corpus._do_elsewhere


def hang_after_the_first(kind, work, digest, parent, threads, step, part):
    _do_elsewhere(kind, work, digest, parent, threads, step, part)
    time.sleep(60)


def die_on_the_second(kind, work, digest, parent, threads, step, part):
    if step == "tokenize" and part.number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return _do_elsewhere(kind, work, digest, parent, threads, step, part)
