"""Serves some thousand requests of random lengths and fails when resident memory is not flat at the end.

    python tests/native/soak.py [--requests 6000] [--seed 0]

Half go through Llama, as streams of which some are left half-way. Half go through a context whose sequences start and
end as they come, beside each other, with aborted decodes, shifts, shared prompts and saved states in between. Both
refresh policies take turns. Needs the installed package, gguf and Linux with glibc; takes some minutes.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loradrop import Llama
from loradrop._core import Context, Corrector, DecodeAborted, Model

sys.path.insert(0, str(Path(__file__).parent.parent / "python"))
import tiny

N_CTX = 1024
N_SEQ = 4
MAX_PROMPT, MAX_GENERATED = 120, 60
POINT = {"rho": 0.5, "k": 3, "kv_window": 16}
N_SAMPLES = 40
# Fragments come and go; a leak of 200 bytes a request is 600 KiB in half of 6000 requests.
MAX_GROWTH = 512 << 10


def resident_bytes() -> int:
    """Return what this process holds in memory, without what the allocator keeps for later."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def tokens(rng: random.Random, most: int) -> list[int]:
    """Return a random text."""
    return [rng.randrange(3, 319) for _ in range(rng.randint(1, most))]


def through_llama(path: Path, refresh: str, rng: random.Random) -> Iterator[None]:
    """Serve requests one after the other, without end; yield after each."""
    with Llama(path, n_ctx=N_CTX, n_threads=1, refresh=refresh, **POINT) as llm:
        while True:
            stream = llm.create_completion(
                tokens(rng, MAX_PROMPT),
                max_tokens=rng.randint(1, MAX_GENERATED),
                temperature=rng.choice([0.0, 1.0]),
                seed=rng.getrandbits(31),
                stream=True,
            )
            left_after = rng.randint(1, 3 * MAX_GENERATED)
            for i, _ in enumerate(stream):
                if i == left_after:
                    stream.close()
                    break
            yield


class Slots:
    """The sequences of a context, each with the tokens that its request still has to decode."""

    def __init__(self, path: Path, refresh: str, rng: random.Random) -> None:
        self.path, self.refresh, self.rng = path, refresh, rng
        self.model = Model(str(path))
        self.context = self.new_context()
        self.left: dict[int, int] = {}

    def new_context(self) -> Context:
        """Return a context without sequences."""
        corrector = Corrector.load(str(self.path), self.model)
        threads: dict[str, Any] = {"n_threads": 1, "n_threads_batch": 1}
        point: dict[str, Any] = POINT
        return Context(
            self.model, corrector=corrector, refresh=self.refresh, n_ctx=N_CTX, n_seq_max=N_SEQ, **threads, **point
        )

    def requests(self) -> Iterator[None]:
        """Serve requests without end; yield after each."""
        while True:
            self.start()
            self.decode({seq_id: tokens(self.rng, 1) for seq_id in self.left})
            for seq_id in [seq_id for seq_id, left in self.left.items() if left <= 0]:
                self.context.seq_rm(seq_id)
                del self.left[seq_id]
                yield
            self.interfere()

    def start(self) -> None:
        """Fill free sequences now and then, with a prompt of their own or a copy of another's text."""
        for seq_id in set(range(N_SEQ)) - set(self.left):
            if self.rng.random() < 0.3:
                if self.left and self.rng.random() < 0.3:
                    self.context.seq_cp(self.rng.choice(list(self.left)), seq_id)
                self.left[seq_id] = self.rng.randint(1, MAX_GENERATED)
                self.decode({seq_id: tokens(self.rng, MAX_PROMPT)})

    def decode(self, batch: dict[int, list[int]]) -> None:
        """Decode the sequences' tokens; end those that leave no room."""
        for seq_id in list(batch):
            if self.context.seq_pos_max(seq_id) > N_CTX // N_SEQ - MAX_PROMPT:
                self.left[seq_id] = 0
                del batch[seq_id]
        if not batch:
            return
        flat = [token for text in batch.values() for token in text]
        seq_ids = [seq_id for seq_id, text in batch.items() for _ in text]
        outputs = [i + 1 == len(seq_ids) or seq_ids[i] != seq_ids[i + 1] for i in range(len(seq_ids))]
        if self.rng.random() < 0.05:
            self.context.abort_after(self.rng.randint(0, 300))
        try:
            self.context.decode(flat, seq_ids=seq_ids, outputs=outputs)
        except DecodeAborted:
            return
        for seq_id in batch:
            self.left[seq_id] -= 1

    def interfere(self) -> None:
        """Do now and then what a server does beside decoding."""
        if self.rng.random() < 0.02:
            there = self.new_context() if self.rng.random() < 0.5 else self.context
            there.load_state(self.context.save_state())
            self.context = there
        if self.left and self.rng.random() < 0.02:
            # alone, for cells that sequences share move for all of them
            seq_id = self.rng.choice(list(self.left))
            self.context.seq_keep(seq_id)
            self.left = {seq_id: self.left[seq_id]}
            last = self.context.seq_pos_max(seq_id)
            if last > 8:
                self.context.seq_rm(seq_id, 4, 8)
                self.context.seq_add(seq_id, 8, -1, -4)


def main() -> int:
    """Serve; exit code 0 when memory is flat."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        model = tiny.make_model()
        tiny.write_gguf(path, model, tiny.make_corrector(model, "segment", segments=[(2, 4)]))
        clients = [through_llama(path, refresh, rng) for refresh in ("single", "refill")]
        clients += [Slots(path, refresh, rng).requests() for refresh in ("single", "refill")]
        samples: list[int] = []
        start = time.monotonic()
        for i in range(1, args.requests + 1):
            next(clients[i % len(clients)])
            if i % max(1, args.requests // N_SAMPLES) == 0:
                samples.append(resident_bytes())
                print(f"{i:6} requests {time.monotonic() - start:7.1f} s {samples[-1] / 2**20:8.2f} MiB", flush=True)
    quarter = len(samples) // 4
    middle, end = statistics.median(samples[quarter : 2 * quarter]), statistics.median(samples[-quarter:])
    growth = end - middle
    print(f"from the second quarter to the last: {growth / 1024:+.0f} KiB, at most {MAX_GROWTH >> 10} are allowed")
    return 0 if growth <= MAX_GROWTH else 1


if __name__ == "__main__":
    sys.exit(main())
