"""The result of a grading: grades, findings and the verdict."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One fault: the rule that found it, what is wrong, where, and how such a fault is usually mended.

    ``blames`` names what is at fault: ``layer``, ``reference``, ``torch`` (its operators, in either of them), ``both``
    layer and reference, or ``undecided``.
    """

    rule: str
    wrong: str
    where: str
    mend: str
    blames: str = "layer"

    def __str__(self) -> str:
        return f"{self.rule}: {self.wrong}\n  where: {self.where}\n  mend:  {self.mend}"


@dataclass(frozen=True)
class Grade:
    """The findings of one rule; ``asks`` is what the rule requires, ``skipped`` why it was not applied."""

    rule: str
    findings: tuple[Finding, ...] = ()
    skipped: str = ""
    asks: str = ""

    @property
    def result(self) -> str:
        """``passed``, ``failed`` or ``skipped``."""
        return "failed" if self.findings else "skipped" if self.skipped else "passed"


@dataclass(frozen=True)
class CheckReport:
    """The grades of one layer."""

    layer: str
    grades: tuple[Grade, ...]

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Every fault found, in the order of the rules."""
        return tuple(finding for grade in self.grades for finding in grade.findings)

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the rules that found a fault."""
        return tuple(grade.rule for grade in self.grades if grade.findings)

    @property
    def passed(self) -> bool:
        """Whether no rule found a fault."""
        return not self.failed

    @property
    def verdict(self) -> str:
        """One line: the number of rules that passed, or the rules that failed."""
        skipped = sum(grade.result == "skipped" for grade in self.grades)
        applied = len(self.grades) - skipped
        beside = f", {skipped} skipped" if skipped else ""
        if self.passed:
            return f"{self.layer} passed {applied} rules{beside}"
        if all(finding.blames in ("reference", "torch") for finding in self.findings):
            passed = applied - len(self.failed)
            who = " and ".join(sorted({finding.blames for finding in self.findings}))
            return (
                f"{self.layer} passed {passed} rules{beside}; not the layer but {who} failed: {', '.join(self.failed)}"
            )
        return f"{self.layer} failed {len(self.failed)} of {applied} rules{beside}: {', '.join(self.failed)}"

    def __str__(self) -> str:
        lines = [f"  {g.result:8}{g.rule}{f' ({g.skipped})' if g.skipped else ''}" for g in self.grades]
        return "\n".join([f"{self.layer}:", *lines, *map(str, self.findings), self.verdict])
