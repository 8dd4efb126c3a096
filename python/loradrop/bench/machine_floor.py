"""What the machine can do at best, and what that makes of a model's step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from loradrop._core import Model, machine_floor
from loradrop.bench.step_bytes import step_bytes, step_products
from loradrop.options import FULL


@dataclass(frozen=True)
class MachineFloor:
    """How quickly the machine reads and multiplies, whatever the kernels, and how much of either a model's step takes.

    What a cache keeps from token to token is read more quickly than this; and a machine that is shared with others is
    sometimes slower while this is measured than it is later.

    Attributes
    ----------
    bytes_per_second : float
        Of reading much more memory than caches hold, in pages of 4 KiB.
    products_per_second : float, optional
        Of products of bytes in registers alone, by the widest instructions that the kernels use; None for a processor
        that there are no kernels for.
    step_bytes : int
        Bytes of weights that a full step of one token reads; see `loradrop.bench.step_bytes`.
    step_products : int
        Products of quantised weights that a full step computes for each token.
    """

    bytes_per_second: float
    products_per_second: float | None
    step_bytes: int
    step_products: int

    def read_ms(self, n_bytes: int) -> float:
        """Return the milliseconds that reading so many bytes takes."""
        return n_bytes / self.bytes_per_second * 1e3

    def products_ms(self, n_tokens: int) -> float | None:
        """Return the milliseconds that the products of so many tokens take; None where they are not known."""
        if self.products_per_second is None:
            return None
        return n_tokens * self.step_products / self.products_per_second * 1e3

    def better(self, other: MachineFloor) -> MachineFloor:
        """Return the floor by the better figures of this and of another measurement."""
        products = [rate for rate in (self.products_per_second, other.products_per_second) if rate is not None]
        return replace(
            self,
            bytes_per_second=max(self.bytes_per_second, other.bytes_per_second),
            products_per_second=max(products, default=None),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return all figures by name."""
        return {
            "bytes_per_second": self.bytes_per_second,
            "products_per_second": self.products_per_second,
            "step_bytes": self.step_bytes,
            "step_products": self.step_products,
            "read_ms": self.read_ms(self.step_bytes),
            "products_ms": self.products_ms(1),
        }


def measure_floor(model: Model, n_threads: int) -> MachineFloor:
    """Measure how quickly so many threads read and multiply, with the CPU kernels in use."""
    return MachineFloor(*machine_floor(n_threads), step_bytes(model, FULL).full, step_products(model))
