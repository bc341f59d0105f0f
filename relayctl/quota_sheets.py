"""A statement as rows and as JSON. Pure."""

from __future__ import annotations

from typing import Any

from mailqueue.statement import LAST_DAY, Statement
from relayctl.sheets import clock

COLUMNS = ("when", "kind", "recipients", "left", "origin", "who", "about")


def rows(found: Statement) -> list[tuple[str, ...]]:
    """Entries as they came, then use day by day; the last column but three runs from opening to closing."""
    left = found.opening
    table: list[tuple[str, ...]] = [(found.first, "opening", "", str(left), "", "", "")]
    for entry in found.entries:
        left += entry["amount"]
        about = [entry.get(key, "") for key in ("reason", "other", "incident", "period")]
        head = (clock(entry["at"]), entry["kind"], f"{entry['amount']:+}", str(left))
        table.append((*head, entry.get("origin", ""), entry.get("who", ""), " ".join(filter(None, about))))
    for (day, origin), count in found.use.items():
        left -= count
        table.append((day, "use", f"{-count:+}", str(left), origin, "", ""))
    table.append((found.last if found.last != LAST_DAY else "", "closing", "", str(left), "", "", ""))
    return table


def plain(found: Statement) -> dict[str, Any]:
    use = [{"day": day, "origin": origin, "recipients": count} for (day, origin), count in found.use.items()]
    ends = {"account": found.account, "opening": found.opening, "closing": found.closing}
    return {**ends, "entries": [*found.entries], "use": use}
