"""The workers that a process is, or stands for, one by one: what a checkpoint keeps of each."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch.nn import Module

from imgnet.parallel.engines.strategy import Strategy
from imgnet.randomness import random_state, restore_random_state


@final
class Member:
    """One worker.

    Args:
        rank: its rank.
        module: its model.
        strategy: its part in the training.
        own_random: its random states, where the process stands for several workers; None: those of the process.
    """

    def __init__(self, rank: int, module: Module, strategy: Strategy, own_random: dict[str, Any] | None = None) -> None:
        self.rank = rank
        self.module = module
        self.strategy = strategy
        self._own_random = own_random
        self._sent_before = 0.0

    @property
    def sent_bytes(self) -> float:
        """What it has sent in the whole run, see :attr:`Strategy.sent_bytes`; a resume sends nothing that counts."""
        return self._sent_before + self.strategy.sent_bytes

    def go_on_from(self, sent_bytes: float) -> None:
        """Count from here on, so many bytes having been sent before."""
        self._sent_before = sent_bytes - self.strategy.sent_bytes

    @contextmanager
    def turn(self) -> Iterator[None]:
        """What is drawn inside comes from this worker's own stream of torch's, from which alone models draw."""
        if self._own_random is None:
            yield
            return
        torch.set_rng_state(self._own_random["torch"])
        if "cuda" in self._own_random:
            torch.cuda.set_rng_state(self._own_random["cuda"])
        yield
        self._own_random["torch"] = torch.get_rng_state()
        if "cuda" in self._own_random:
            self._own_random["cuda"] = torch.cuda.get_rng_state()

    def state(self) -> dict[str, Any] | None:
        """What :meth:`restore` needs, live tensors included; None: a run of this kind cannot be continued."""
        strategy = self.strategy.state()
        if strategy is None:
            return None
        random = random_state() if self._own_random is None else self._own_random
        return {
            "model": self.module.state_dict(),
            "strategy": strategy,
            "random": random,
            "sent_bytes": self.sent_bytes,
        }

    def restore(self, state: dict[str, Any], num_steps: int) -> None:
        """Go on as if the ``num_steps`` steps that led to ``state`` had just been made here. Collective."""
        self.module.load_state_dict(state["model"])
        self.strategy.restore(state["strategy"], num_steps)
        self.go_on_from(state.get("sent_bytes", 0.0))
        if self._own_random is None:
            restore_random_state(state["random"])
        else:
            self._own_random |= state["random"]
