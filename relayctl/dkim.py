"""``relayctl dkim generate | list | show | rotate | test | return-path-key``."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import orjson
import typer

from config.durations import seconds
from config.load import Loaded
from relayctl import dkim_records, dkim_sheets
from relayctl.audit import Why, audited, record_beside
from relayctl.config import PathOption, load_or_exit
from signing import keys, record, return_path
from signing.keys import Held

app = typer.Typer(no_args_is_help=True)


class Algorithm(StrEnum):
    RSA_2048 = "rsa-2048"
    RSA_4096 = "rsa-4096"
    ED25519 = "ed25519"
    BOTH = "both"


Domain = Annotated[str, typer.Argument(metavar="DOMAIN", help="Of From; non-ASCII labels as xn--…")]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON instead of a table.")]
Overlap = Annotated[str, typer.Option(help="How long the record of a key that stops must stay.")]
Nameserver = Annotated[str, typer.Option(help="address[:port] to ask; default: as /etc/resolv.conf says.")]


@app.callback()
def dkim() -> None:
    """Keys that sign mail, and the key of signed return paths."""


@app.command()
def generate(
    domain: Domain,
    selector: Annotated[str, typer.Option(help="Default: algorithm and day. With both: -rsa and -ed25519 added.")] = "",
    algorithm: Annotated[Algorithm, typer.Option(help="both = rsa-2048 and ed25519.")] = Algorithm.BOTH,
    now: Annotated[bool, typer.Option("--now", help="Sign at once, before the record is known to be there.")] = False,
    overlap: Overlap = "7d",
    reason: Why = "",
    config: PathOption = None,
) -> None:
    """Make a key; it waits, and its record can be published, until `rotate`."""
    loaded, domain = load_or_exit(config), domain.lower().rstrip(".")
    directory = key_directory(loaded)
    both = algorithm is Algorithm.BOTH
    with refusals():
        made = []
        for kind in ("rsa-2048", "ed25519") if both else (str(algorithm),):
            name = f"{selector}-{kind.partition('-')[0]}" if selector and both else selector
            made.append(keys.generate(directory, domain, kind, selector=name, now=time.time()))
        if now:
            names = [held.key.selector for held in made]
            made = keys.rotate(directory, domain, now=time.time(), overlap=duration(overlap), only=names)
    trail(loaded, "dkim generate", domain, reason, None, made)
    dkim_sheets.made(made, time.time())


@app.command("list")
def list_keys(config: PathOption = None, json: JsonOption = False) -> None:
    """All keys, where each stands, and what is to be done next."""
    with refusals():
        found = keys.read(key_directory(load_or_exit(config)))
    now = time.time()
    if json:
        print_json([plain(held, now) for held in found])
    else:
        dkim_sheets.listed(found, now)


@app.command()
def show(domain: Domain, config: PathOption = None, json: JsonOption = False) -> None:
    """The DNS records of a domain's keys, ready for a zone file."""
    found = of_domain(key_directory(load_or_exit(config)), domain)
    now = time.time()
    if json:
        print_json([plain(held, now) for held in found])
    else:
        dkim_sheets.records(found, now)


@app.command()
def rotate(
    domain: Domain,
    overlap: Overlap = "7d",
    nameserver: Nameserver = "",
    unchecked: Annotated[bool, typer.Option("--unchecked", help="Without looking up the new records first.")] = False,
    reason: Why = "",
    config: PathOption = None,
) -> None:
    """The newest waiting key of each algorithm signs from now on; those before it stop, their records stay."""
    loaded, domain = load_or_exit(config), domain.lower().rstrip(".")
    directory = key_directory(loaded)
    before = of_domain(directory, domain)
    waiting = [held for held in before if held.state(time.time()) == "ready"]
    if not waiting:
        refuse(f"{domain} has no key that waits; make one: relayctl dkim generate {domain}")
    if not unchecked and (wrong := dkim_records.wrong(waiting, dkim_records.resolver(nameserver))):
        refuse("nothing changed:", *wrong, "publish, wait for old answers to expire, or say --unchecked")
    with refusals():
        begun = keys.rotate(directory, domain, now=time.time(), overlap=duration(overlap))
    trail(loaded, "dkim rotate", domain, reason, before, of_domain(directory, domain))
    dkim_sheets.begun(begun, duration(overlap))


@app.command()
def test(
    what: Annotated[str, typer.Argument(metavar="DOMAIN|FILE", help="A domain, or a message to sign and verify.")],
    nameserver: Nameserver = "",
    config: PathOption = None,
    json: JsonOption = False,
) -> None:
    """Look the records up and say what is wrong; with a file, sign it and let dkimpy verify it by DNS."""
    directory, asking = key_directory(load_or_exit(config)), dkim_records.resolver(nameserver)
    with refusals():
        if Path(what).is_file():
            found = dkim_records.signed_file(Path(what), keys.load(str(directory)), asking, time.time())
        else:
            found = dkim_records.published(of_domain(directory, what), asking, time.time())
    if json:
        print_json(found)
    else:
        dkim_sheets.verdicts(found)
    if any(one.problems for one in found):
        raise typer.Exit(1)


@app.command("return-path-key")
def return_path_key(
    add: Annotated[
        bool, typer.Option("--add", help="A new key on top of those the file has, which still read.")
    ] = False,
    reason: Why = "",
    config: PathOption = None,
) -> None:
    """Make the file with the key of signed return paths, or add a key to it."""
    loaded = load_or_exit(config)
    name = loaded.settings.signing.return_path_key
    if name is None:
        refuse("signing.return_path_key is not set: name the file in the configuration")
    path = Path(name)
    if path.exists() and not add:
        refuse(f"{path} is there; --add puts a new key on top of it")
    with refusals():
        count = return_path.add_key(path, time.strftime("%Y-%m-%d", time.gmtime()))
    said = audited(
        "dkim return-path-key", f"file:{path}", " ".join(reason.split()), {"keys": count - 1}, {"keys": count}
    )
    record_beside(loaded, said)
    dkim_sheets.return_path_key(path, count)


# ── what the verbs share ───────────────────────────────────────────────────────────────────────────────────────────


def trail(
    loaded: Loaded, verb: str, domain: str, reason: str, before: Sequence[Held] | None, after: Sequence[Held]
) -> None:
    """The audit event: selectors and where they stand."""
    now = time.time()
    was, is_ = ({one.key.selector: one.state(now) for one in held} for held in (before or (), after))
    record_beside(loaded, audited(verb, f"domain:{domain}", " ".join(reason.split()), was if before else None, is_))


def key_directory(loaded: Loaded) -> Path:
    name = loaded.settings.signing.directory
    if name is None:
        refuse("signing.directory is not set: name the directory of the keys in the configuration")
    return Path(name)


def of_domain(directory: Path, domain: str) -> list[Held]:
    """Its keys, at least one."""
    domain = domain.lower().rstrip(".")
    with refusals():
        found = keys.read_domain(directory / domain) if (directory / domain).is_dir() else []
    if not found:
        refuse(f"no key of {domain} in {directory}; make one: relayctl dkim generate {domain}")
    return found


def plain(held: Held, now: float) -> dict[str, object]:
    key = held.key
    return {
        "domain": key.domain,
        "selector": key.selector,
        "algorithm": key.algorithm,
        "state": held.state(now),
        "since": finite(key.since),
        "until": finite(key.until),
        "record_until": held.keep,
        "file": str(held.path),
        "name": key.name,
        "record": record.text(key),
    }


def finite(value: float) -> float | None:
    return value if value != float("inf") else None


def duration(text: str) -> float:
    """Seconds of "7d"."""
    try:
        found = seconds(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    assert isinstance(found, float)
    return found


@contextmanager
def refusals() -> Iterator[None]:
    """What a lower room refuses goes to standard error; exit 1."""
    try:
        yield
    except (ValueError, OSError) as error:
        refuse(str(error))


def refuse(*lines: str) -> NoReturn:
    for line in lines:
        typer.echo(line, err=True)
    raise typer.Exit(1)


def print_json(tree: object) -> None:
    typer.echo(orjson.dumps(tree, option=orjson.OPT_INDENT_2))
