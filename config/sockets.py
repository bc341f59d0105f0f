"""The listeners as systemd's socket units say them: written once, in the configuration, and told to systemd from there.

``relayd@.socket`` and ``inbound.socket`` come without addresses; drop-ins made here bring them. A listener that is bound
to another interface than the first one needs a unit of its own (``BindToDevice=`` counts for a whole unit).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from config.addresses import INSIDE
from config.settings import ListenerSettings, Settings

# Where units lie; what comes first wins (systemd.unit(5)).
DIRECTORIES = tuple(
    Path(text) for text in ("/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system")
)  # fmt: skip
DROP_IN = "listeners.conf"
SAID = "# Made from the listeners of tambo.toml by: relayctl systemd sockets --write\n"
PARTS = {"submission": ("relayd", "@", "@%i"), "inbound": ("inbound", "", "")}  # kind → unit, its template, an instance

Place = tuple[str, str]  # ("10.20.0.5:587", interface or "")


@dataclass(frozen=True, slots=True)
class Group:
    """Listeners that one socket unit opens: ``unit`` is its name without ".socket"."""

    unit: str
    kind: str
    interface: str
    listeners: tuple[ListenerSettings, ...]

    @property
    def first(self) -> bool:
        """It has the unit that is shipped."""
        name, template, _ = PARTS[self.kind]
        return self.unit == name + template


def groups(settings: Settings, kind: str) -> list[Group]:
    """By interface, in the order of the file."""
    name, template, _ = PARTS[kind]
    sorted_out: dict[str, list[ListenerSettings]] = {}
    for listener in settings.relayd.listeners:
        if listener.kind == kind:
            sorted_out.setdefault(listener.interface or "", []).append(listener)
    return [
        Group(f"{name}-{found[0].name}{template}" if number else f"{name}{template}", kind, interface, tuple(found))
        for number, (interface, found) in enumerate(sorted_out.items())
    ]


def units(settings: Settings) -> dict[str, str]:
    """Path below systemd's directory → text. ValueError for a listener that no socket unit can open."""
    found: dict[str, str] = {}
    for kind, (name, template, instance) in PARTS.items():
        each = groups(settings, kind)
        for group in each:
            if group.first:
                found[f"{group.unit}.socket.d/{DROP_IN}"] = f"{SAID}[Socket]\n{_addresses(group)}"
            else:
                found[f"{group.unit}.socket"] = _whole(group, f"{name}{instance}.service")
        if len(each) > 1:
            names = " ".join(f"{group.unit.removesuffix('@')}{instance}.socket" for group in each)
            text = f"{SAID}[Unit]\nRequires={names}\n\n[Service]\nSockets={names}\n"
            found[f"{name}{template}.service.d/{DROP_IN}"] = text
    return found


def _addresses(group: Group) -> str:
    lines = [f"ListenStream={_spelled(listener)}" for listener in group.listeners]
    if group.interface:
        lines.append(f"BindToDevice={group.interface}")
    if len(group.listeners) == 1:
        lines.append(f"FileDescriptorName={group.listeners[0].name}")
    if not any(listener.allow_public for listener in group.listeners):
        lines += ["IPAddressDeny=any", f"IPAddressAllow={' '.join(map(str, INSIDE))}"]
    return "".join(f"{line}\n" for line in lines)


def _whole(group: Group, service: str) -> str:
    part_of = "relayd.target" if group.kind == "submission" else "tambo.target"
    return (
        f"{SAID}[Unit]\nDescription=Tambo: listeners of {group.interface or 'no interface'}\nPartOf={part_of}\n\n"
        f"[Socket]\nSlice=tambo.slice\nService={service}\nReusePort=yes\nFreeBind=yes\nBindIPv6Only=ipv6-only\nAccept=no\nBacklog=1024\n"
        f"TriggerLimitIntervalSec=0\n{_addresses(group)}"
    )


def _spelled(listener: ListenerSettings) -> str:
    if not listener.port:
        raise ValueError(f"listener {listener.name}: port 0 is any free one; a socket of systemd needs a port")
    return f"[{listener.address}]:{listener.port}" if ":" in listener.address else f"{listener.address}:{listener.port}"


def changes(settings: Settings, directory: Path) -> tuple[dict[str, str], list[str]]:
    """What is to be written below ``directory``, and what of ours there counts no more. ValueError as :func:`units`."""
    wanted = units(settings)
    different = {name: text for name, text in wanted.items() if _read(directory / name) != text}
    patterns = (f"*.d/{DROP_IN}", "relayd-*.socket", "inbound-*.socket")
    there = [str(path.relative_to(directory)) for pattern in patterns for path in sorted(directory.glob(pattern))]
    return different, [name for name in there if name not in wanted and _read(directory / name).startswith(SAID)]


def disagreements(settings: Settings, directories: Sequence[Path] = DIRECTORIES) -> list[str]:
    """What socket units that are installed listen at beside the listeners, and the listeners that have none."""
    found = []
    for kind, (name, template, _) in PARTS.items():
        if not any((directory / f"{name}{template}.socket").exists() for directory in directories):
            continue
        open_, wanted = _open(directories, name, template), _wanted(settings, kind)
        for place in sorted(wanted.keys() - open_):
            found.append(f"relayd.listeners: {wanted[place]} ({_named(place)}) has no socket of systemd")
        for place in sorted(open_ - wanted.keys()):
            found.append(f"{name}{template}.socket: listens at {_named(place)}, which is no listener's")
    return [f"{line}; write them anew: relayctl systemd sockets --write" for line in found]


def _wanted(settings: Settings, kind: str) -> dict[Place, str]:
    return {
        (_spelled(one), one.interface or ""): one.name
        for one in settings.relayd.listeners
        if one.kind == kind and one.port
    }


def _named(place: Place) -> str:
    return f"{place[0]} on {place[1]}" if place[1] else place[0]


def _open(directories: Sequence[Path], name: str, template: str) -> set[Place]:
    """Where the units of one service listen, as their files say."""
    units_ = {path.name for directory in directories for path in directory.glob(f"{name}-*{template}.socket")}
    places: set[Place] = set()
    for unit in sorted({f"{name}{template}.socket", *units_}):
        streams, device = _streams(_files(directories, unit))
        places |= {(stream, device) for stream in streams}
    return places


def _files(directories: Sequence[Path], unit: str) -> list[Path]:
    """The unit's file, then its drop-ins by name; of two with one name the one that counts."""
    drop_ins: dict[str, Path] = {}
    for directory in reversed(directories):
        drop_ins |= {path.name: path for path in (directory / f"{unit}.d").glob("*.conf")}
    files = [directory / unit for directory in directories if (directory / unit).exists()][:1]
    return files + [drop_ins[name] for name in sorted(drop_ins)]


def _streams(files: Iterable[Path]) -> tuple[list[str], str]:
    streams: list[str] = []
    device = ""
    for file in files:
        for line in _read(file).splitlines():
            key, _, value = (part.strip() for part in line.partition("="))
            if key == "ListenStream":
                streams = [*streams, value] if value else []
            elif key == "BindToDevice":
                device = value
    return streams, device


def _read(path: Path) -> str:
    """ "" for what is not there."""
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return ""


def written(directory: Path, texts: Mapping[str, str], removed: Iterable[str]) -> None:
    """Each file whole; OSError names it."""
    for name, text in texts.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        part = directory / f"{name}.part"
        part.write_text(text, encoding="utf-8")
        part.replace(directory / name)
    for name in removed:
        (directory / name).unlink()
