"""The channel by which rank 0 leads the others: through the process group's store, beside its collectives."""

from __future__ import annotations

import contextlib
import json
import time

import torch.distributed as dist

from qexp.base.dist import COLLECTIVE_TIMEOUT

_POLL_S = 0.05


class ControlChannel:
    """Numbered messages from rank 0 to the others, and numbered outcomes among all.

    Args:
        store: the control store of `init_from_env`.
        rank: of this process.
        world_size: how many processes there are.
    """

    def __init__(self, store: dist.Store, rank: int, world_size: int) -> None:
        self.store, self.rank, self.world_size = store, rank, world_size
        self.mistakes: set[int] = set()  # ranks that `agree` heard ended by what is the user's to mend

    def send(self, number: int, text: str) -> None:
        """On rank 0: publish message `number` (0, 1, 2, ...); each number once."""
        assert self.rank == 0, "only rank 0 sends"
        self.store.set(f"message/{number}", text)

    def receive(self, number: int) -> str:
        """Wait for message `number` as long as the store lives; however long rank 0 composes, this does not time out.

        Raises:
            torch.distributed.DistError: the process that serves the store is gone.
        """
        key = f"message/{number}"
        while not self.store.check([key]):
            time.sleep(_POLL_S)
        return self.store.get(key).decode()

    def leave(self) -> None:
        """Above rank 0: mark that this rank reads no further message."""
        self.store.set(f"left/{self.rank}", "")

    def wait_until_left(self, limit_s: float = 10) -> None:
        """On rank 0, which may serve the store: stay until the others have read their last message, `limit_s` at most."""
        keys = [f"left/{other}" for other in range(1, self.world_size)]
        deadline = time.monotonic() + limit_s
        while not all(self.store.check([key]) for key in keys) and time.monotonic() < deadline:
            time.sleep(_POLL_S)

    def post(self, number: int, text: str, *, mistake: bool = False) -> None:
        """Publish how job `number` ended on this rank: empty where it succeeded, else what went wrong.

        Args:
            number: of the job.
            text: what went wrong.
            mistake: it is the user's to mend.
        """
        self.store.set(f"outcome/{number}/{self.rank}", json.dumps({"text": text, "mistake": mistake}))

    def agree(
        self,
        number: int,
        ok: bool,
        message: str = "",
        *,
        mistake: bool = False,
        limit_s: float = COLLECTIVE_TIMEOUT.total_seconds(),
        grace_s: float = 5,
    ) -> list[str]:
        """Post how job `number` ended here, and learn how it ended everywhere.

        Args:
            number: of the job, used once.
            ok: this rank succeeded.
            message: what went wrong otherwise.
            mistake: it is the user's to mend.
            limit_s: how long to wait for a rank that reports nothing, in s.
            grace_s: the same once some rank has failed, as the others may then hang in a collective.

        Returns:
            One text per rank: empty where it succeeded, else what went wrong, silence included.
        """
        text = "" if ok else (message or "failed")
        self.post(number, text, mistake=mistake)
        outcomes: dict[int, str] = {self.rank: text}
        self.mistakes = {self.rank} if mistake else set()
        began = time.monotonic()
        deadline = began + (limit_s if ok else min(grace_s, limit_s))
        try:
            while len(outcomes) < self.world_size and time.monotonic() < deadline:
                if any([self._hear(number, outcomes, other) for other in range(self.world_size)]):
                    deadline = min(deadline, time.monotonic() + grace_s)
                if len(outcomes) < self.world_size:
                    time.sleep(_POLL_S)
        except dist.DistError:  # who serves the store has heard of the failure and left
            if ok:
                raise
        waited = f"rank said nothing within {time.monotonic() - began:.0f} s"
        return [outcomes.get(other, waited) for other in range(self.world_size)]

    def hears_of_mistake(self, number: int) -> bool:
        """Whether a rank has ended job `number` by what is the user's to mend, as far as is known now; the others' then break."""
        with contextlib.suppress(dist.DistError):  # who serves the store has left
            for other in range(self.world_size):
                self._hear(number, {}, other)
        return bool(self.mistakes)

    def _hear(self, number: int, outcomes: dict[int, str], other: int) -> bool:
        """Note what a rank has posted of job `number`; True where it is news, and it failed."""
        key = f"outcome/{number}/{other}"
        if other in outcomes or not self.store.check([key]):
            return False
        told = json.loads(self.store.get(key))
        outcomes[other] = told["text"]
        self.mistakes |= {other} if told["mistake"] else set()
        return bool(told["text"])
