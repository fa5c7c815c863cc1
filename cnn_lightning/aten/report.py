"""What ran while `numpy_ops` was on: calls by operator, and the share of FLOPs that NumPy computed."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Report:
    """The operators that were called in a `numpy_ops` block.

    Attributes:
        calls: Calls that NumPy computed, by operator.
        native: Calls that torch computed, by operator and reason.
        flops: Multiplications and additions of the convolutions and matrix products that NumPy computed.
        native_flops: The same of those that torch computed.
    """

    calls: Counter[str] = field(default_factory=Counter)
    native: Counter[tuple[str, str]] = field(default_factory=Counter)
    flops: int = 0
    native_flops: int = 0

    @property
    def share(self) -> float:
        """The share of the FLOPs of convolutions and matrix products that NumPy computed; 1 if there were none."""
        total = self.flops + self.native_flops
        return self.flops / total if total else 1.0

    def add(self, other: "Report") -> None:
        """Count the calls of another report, too."""
        self.calls += other.calls
        self.native += other.native
        self.flops += other.flops
        self.native_flops += other.native_flops

    def __str__(self) -> str:
        """One line."""
        calls, operators = self.calls.total(), len(self.calls)
        done = f"{calls:,} call{'s' * (calls != 1)} of {operators} operator{'s' * (operators != 1)} in NumPy"
        products = f"{100 * self.share:.6g} % of the FLOPs of convolutions and matrix products"
        return f"functions: {done}, {products}; {self._rest()}"

    def _rest(self) -> str:
        if not self.native:
            return "torch: sums, elementwise arithmetic, copies"
        names = [f"{count} of {name} ({reason})" for (name, reason), count in self.native.most_common(3)]
        more = len(self.native) - len(names)
        return f"torch: {', '.join(names)}{f' and {more} more' if more else ''}, sums, elementwise arithmetic, copies"

    def table(self) -> list[tuple[str, int, str]]:
        """Operator, calls, and ``numpy`` or the reason why torch computed it; the most frequent first."""
        rows = [(name, count, "numpy") for name, count in self.calls.items()]
        rows += [(name, count, reason) for (name, reason), count in self.native.items()]
        return sorted(rows, key=lambda row: (-row[1], row[0]))
