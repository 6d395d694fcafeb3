"""The files of a newcomer's shop, good ones, to be spoiled; and what a folder holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Tables:
    """Good tables as lists of lines, header first; a test spoils them before they are written."""

    interactions: list[str] = field(
        default_factory=lambda: [
            "user_id,item_id,timestamp",
            *(
                f"{u},{(u + 5 * n) % 12},{1_700_000_000 + n * 3600}"
                for n in range(9)
                for u in range(9)
            ),
        ]
    )
    users: list[str] = field(
        default_factory=lambda: ["user_id,country", *(f"{u},C{u % 3}" for u in range(9))]
    )
    items: list[str] = field(
        default_factory=lambda: ["item_id,genre", *(f"{i},g{i % 4}" for i in range(12))]
    )

    def write(self) -> list[str]:
        """Write them as CSV; the overrides that choose them."""
        for name, lines in vars(self).items():
            Path(f"{name}.csv").write_text("\n".join(lines) + "\n")
        return ["data=tables", *(f"data.{name}={name}.csv" for name in vars(self))]

    def labelled(self, *labels: str) -> Tables:
        """With a column of labels: 0 and 1 in turn, the given ones first."""
        rows = self.interactions[1:]
        values = [*labels, *(str(n % 2) for n in range(len(labels), len(rows)))]
        self.interactions = [
            f"{self.interactions[0]},click",
            *(f"{row},{value}" for row, value in zip(rows, values, strict=True)),
        ]
        return self


def clicks(*lines: str) -> list[str]:
    """A flat click table without users, items and times; the overrides that choose it."""
    rows = [f"s{n % 3},{n % 2},{('train', 'validation', 'test')[n % 3]}" for n in range(60)]
    Path("clicks.csv").write_text("\n".join(["site,click,split", *rows, *lines]) + "\n")
    return [
        *("data=impressions", "data.interactions=clicks.csv", "data.label.column=click"),
        "data.context=[site]",
    ]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file and folder below a folder, hidden ones included."""
    paths = sorted(folder.rglob("*"))
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in paths}
