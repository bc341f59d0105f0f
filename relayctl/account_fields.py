"""Fields of an account as an operator writes and reads them: text in, validated account out, differences in words.

Pure. What is wrong comes as the same problems that a configuration file gets (:func:`config.schema.fit`).
"""

from __future__ import annotations

import csv
import datetime
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_origin

import orjson
from pydantic import SecretStr

from config.accounts import AccountSettings
from config.schema import MASK, Problem, fields_of, fit, unknown_key
from mailqueue.accounts import plain

FIELDS = fields_of(AccountSettings)
HASHES = ("password_hash", "previous_hash", "previous_until")
_ASSIGNMENTS = ("+=", "-=", "=")


def is_list(key: str) -> bool:
    return get_origin(FIELDS[key].annotation) is tuple


def is_flag(key: str) -> bool:
    return FIELDS[key].annotation is bool


def raw(key: str, text: str) -> object:
    """The value as a file would have it; "" = the default. Lists are separated by commas."""
    if is_list(key):
        return [part.strip() for part in text.split(",") if part.strip()]
    return text


def edited(account: AccountSettings, assignments: Sequence[str]) -> tuple[AccountSettings | None, list[Problem]]:
    """``key=value``, ``key=`` (the default), and for lists ``key+=value`` and ``key-=value``; or everything wrong."""
    data, problems = plain(account), []
    for assignment in assignments:
        sign = min((s for s in _ASSIGNMENTS if s in assignment), key=assignment.index, default="")
        name, _, text = assignment.partition(sign) if sign else (assignment, "", "")
        key = name.strip().replace("-", "_")
        if not sign:
            problems.append(Problem(assignment, "write key=value, or for lists key+=value and key-=value"))
        elif key not in FIELDS:
            problems.append(Problem(f"{account.name}.{key}", unknown_key(key, tuple(FIELDS))))
        elif key == "name":
            problems.append(
                Problem(f"{account.name}.name", "events and limits know the account by its name; add another")
            )
        elif sign != "=" and not is_list(key):
            problems.append(Problem(f"{account.name}.{key}", f"is no list; write {key}=value"))
        else:
            _assign(data, key, sign, raw(key, text))
    if problems:
        return None, problems
    return fit(AccountSettings, data, account.name)


def _assign(data: dict[str, Any], key: str, sign: str, value: Any) -> None:
    if sign == "+=":
        value = [*data.get(key, ()), *(each for each in value if each not in data.get(key, ()))]
    elif sign == "-=":
        value = [each for each in data.get(key, ()) if each not in value]
    data[key] = value
    if value in ("", []):
        del data[key]


def differences(old: AccountSettings | None, new: AccountSettings | None) -> dict[str, tuple[str, str]]:
    """Key → (before, after); no account has the defaults. Secrets are masked, one in another's place is "another"."""
    found = {}
    for key in FIELDS:
        before, after = value(old, key), value(new, key)
        if before != after and key != "name":
            said = spelled(after)
            found[key] = (spelled(before), "another" if said == MASK == spelled(before) else said)
    return found


def traced(
    old: AccountSettings | None, new: AccountSettings | None
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """What differs, before and after, as JSON for an audit event; of secrets only that there is one, or another."""
    found = differences(old, new)

    def side(account: AccountSettings | None, which: int) -> dict[str, Any] | None:
        if account is None:
            return None
        data = account.model_dump(mode="json", by_alias=True)
        return {
            key: said[which] if isinstance(value(account, key), SecretStr) else data[key] for key, said in found.items()
        }

    return side(old, 0), side(new, 1)


def value(account: AccountSettings | None, key: str) -> object:
    return FIELDS[key].default if account is None else getattr(account, "class_" if key == "class" else key)


def spelled(value: object) -> str:
    if isinstance(value, SecretStr):
        return MASK
    if value is None or value == ():
        return "–"
    if isinstance(value, datetime.date):
        return value.isoformat()
    return value if isinstance(value, str) and value else orjson.dumps(value, default=str).decode()


# ── export and import ──────────────────────────────────────────────────────────────────────────────────────────


def to_json(accounts: Iterable[AccountSettings], hashes: bool) -> bytes:
    rows = [_exported(account, hashes) for account in accounts]
    return orjson.dumps(rows, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def to_csv(accounts: Iterable[AccountSettings], hashes: bool) -> str:
    """One column a field; lists are separated by spaces, an empty cell is the default."""
    keys = [key for key in FIELDS if hashes or key not in HASHES]
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(keys)
    for account in accounts:
        data = _exported(account, hashes)
        rows.writerow([_cell(data[key]) if key in data else "" for key in keys])
    return out.getvalue()


def _exported(account: AccountSettings, hashes: bool) -> dict[str, Any]:
    return {key: value for key, value in plain(account).items() if hashes or key not in HASHES}


def _cell(value: object) -> str:
    if isinstance(value, list):
        return " ".join(value) or "[]"
    if isinstance(value, str) and value and value.strip() == value and value[0] not in '"[':
        return value
    return orjson.dumps(value).decode()


def from_json(content: bytes) -> list[Mapping[str, Any]]:
    """ValueError when it is no list of objects."""
    rows = orjson.loads(content)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("a list of objects is needed, one for each account")
    return rows


def from_csv(text: str) -> list[Mapping[str, Any]]:
    """ValueError when a row has cells without a column, or a cell is no JSON that begins like it."""
    rows = list(csv.DictReader(io.StringIO(text.removeprefix("\ufeff")), restkey=""))
    if any("" in row for row in rows):
        raise ValueError("a row has more cells than there are columns")
    return [{key: _from_cell(key, cell) for key, cell in row.items() if cell} for row in rows]


def _from_cell(key: str, cell: str) -> object:
    if cell[0] in '"[':
        return orjson.loads(cell)
    return cell.split() if key in FIELDS and is_list(key) else cell
