"""One order of calls, waiting without a limit, and no process that computes on when another has failed."""

import time
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
from forking import several

import geneformer_repro as gf
from geneformer_repro import processes
from geneformer_repro.embedding import embed, embed_states
from geneformer_repro.in_silico.perturbation import Deletion
from geneformer_repro.in_silico.screen import perturb


class TestOneProcess:
    def test_it_is_the_first_of_one_and_has_all(self):
        assert (processes.rank(), processes.count(), processes.is_first()) == (0, 1, True)
        assert list(range(5))[processes.share()] == [0, 1, 2, 3, 4]

    def test_its_device_can_hold_a_tensor(self):
        assert torch.ones(1, device=processes.device()).item() == 1

    def test_it_agrees_with_itself_and_waits_for_nobody(self):
        assert processes.agreed(lambda: 5) == 5
        processes.wait()
        with pytest.raises(KeyError, match="no"), processes.together():
            raise KeyError("no")

    def test_a_launch_of_processes_that_do_not_know_of_each_other_is_refused(self, monkeypatch):
        processes.join()
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(gf.InputError, match="2 processes were launched, but accelerate counts 1"):
            processes.rank()


class TestOrderOfCalls:
    """On several accelerators a model must not move before it is known which one is this process's."""

    @pytest.mark.parametrize("what", ["embed", "embed_states", "perturb"])
    def test_a_process_joins_before_anything_moves(self, checkpoint, cells, monkeypatch, what):
        calls = []

        class State:
            num_processes, process_index = 1, 0

            def __init__(self, **_):
                calls.append("join")

            @property
            def device(self):
                calls.append("device")
                return torch.device("meta", 3)  # what the second process of a machine might be given

        moved = torch.nn.Module.to
        monkeypatch.setattr(processes, "PartialState", State)

        def move(module, *given, **options):
            calls.append(("move", given[0]))
            if given[0] == torch.device("meta", 3):
                raise InterruptedError("far enough")
            return moved(module, *given, **options)

        monkeypatch.setattr(torch.nn.Module, "to", move)
        few = cells.select(range(4))
        do = {
            "embed": lambda: embed(checkpoint, few),
            "embed_states": lambda: embed_states(checkpoint, few, "cell_type"),
            "perturb": lambda: perturb(checkpoint, few, Deletion()),
        }[what]
        with pytest.raises(InterruptedError, match="far enough"):
            do()
        assert calls[0] == "join"
        assert "device" in calls
        assert [call for call in calls if call[0] == "move"] == [("move", torch.device("meta", 3))]


class TestTheGroup:
    @pytest.fixture
    def made(self, monkeypatch):
        """What accelerate was asked for."""
        asked = []

        def state(**options):
            asked.append(options)
            return SimpleNamespace(num_processes=2, process_index=0)

        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setattr(processes, "PartialState", state)
        return asked

    def test_has_a_limit_of_a_day(self, made):
        processes.join()
        assert made[0]["timeout"] == timedelta(days=1)

    def test_has_the_limit_and_backend_that_a_run_asks_for(self, made):
        config = gf.PretrainConfig(training={"trainer": {"ddp_timeout": 60, "ddp_backend": "gloo"}})
        from geneformer_repro.training.config import join_processes

        join_processes(config.training)
        assert (made[0]["timeout"], made[0]["backend"]) == (timedelta(seconds=60), "gloo")


def test_two_processes_agree_share_sum_and_wait_longer_than_the_group(tmp_path):
    def run(rank):
        processes.join(timeout=1)
        assert processes.rank() == rank
        assert list(range(5))[processes.share()] == list(range(rank, 5, 2))
        assert processes.sum_over(torch.tensor([rank + 1.0])).item() == 3

        def look():
            time.sleep(2.5)  # longer than a barrier of this group would last
            return {"found": rank}

        assert processes.agreed(look) == {"found": 0}
        with pytest.raises(gf.InputError, match="only the first looked"):
            processes.agreed(refuse)

    several(run, tmp_path)


def refuse():
    raise gf.InputError("only the first looked")


def test_whoever_fails_tells_the_others_at_once(tmp_path):
    """The second would compute for a minute, and then wait for a day."""

    def run(rank):
        with processes.together():
            if rank == 0:
                raise gf.InputError("no room")
            for _ in range(1200):
                time.sleep(0.05)
                processes.require_others()

    began = time.monotonic()
    first, second = several(run, tmp_path, expected=1)
    assert time.monotonic() - began < 20
    assert "InputError: no room" in first
    assert "OtherProcessError: Stopped, since another process of the run failed: process 0: no room" in second
