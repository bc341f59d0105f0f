"""Settings of every process: one frozen tree, read once, validated as a whole.

Shapes and units stand in the field names (``_seconds``, ``_bytes``); durations in TOML may also be
written ``"5m"``, ``"1h30m"``, ``"5d"``. Unknown keys are refused. Loading, provenance and error texts
live in :mod:`config.load`; this module knows only what a valid tree is.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
MailClass = Literal["emergency", "transactional", "bulk"]

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNIT = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds(value: object) -> object:
    """``"1h30m"`` → 5400.0; numbers pass unchanged (they are seconds already)."""
    if not isinstance(value, str):
        return value
    text = value.strip().lower()
    parts = _DURATION.findall(text)
    if not parts or "".join(n + u for n, u in parts) != text:
        raise ValueError("write a duration as a number of seconds or like 90s, 5m, 1h30m, 5d")
    return sum(float(number) * _UNIT[unit] for number, unit in parts)


Seconds = Annotated[float, BeforeValidator(seconds), Field(ge=0)]


def unknown_policy(value: str) -> str:
    """``retry`` · ``never`` · ``once:<duration>``: what follows an end-of-data whose reply was lost."""
    if value in ("retry", "never"):
        return value
    kind, _, wait = value.partition(":")
    if kind == "once" and wait:
        delay = seconds(wait)
        if isinstance(delay, float):
            return f"once:{int(delay)}"
    raise ValueError("allowed: retry, never, once:<duration> (for instance once:24h)")


UnknownPolicy = Annotated[str, AfterValidator(unknown_policy)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class QueueSettings(Section):
    url: str = Field("unix:///run/tambo/queue.sock", description="unix:///path, redis://host:port/0 or rediss://…")
    password: SecretStr | None = None
    shards: int = Field(1, ge=1, le=64, description="fixed at installation")
    durability: Literal["always", "relaxed"] = Field("always", description="relaxed accepts appendfsync everysec")
    memory_mark: float = Field(0.85, gt=0, le=1, description="share of the memory limit at which put is refused (452)")
    memory_limit_mb: int = Field(0, ge=0, description="0 = the server's maxmemory, else 75 % of the machine")
    lease_seconds: Seconds = Field(30.0, ge=1, le=300, description="a worker that is silent longer loses its items")
    put_deadline_seconds: Seconds = Field(30.0, ge=1, le=240)
    idempotency_seconds: Seconds = Field(86400.0)
    events_keep: int = Field(1_000_000, ge=1000, description="entries kept in each shard's event stream")
    dictionaries: bool = Field(True, description="compress against the first message of a campaign")


class ListenerSettings(Section):
    name: str = Field(pattern=r"^[a-z0-9-]{1,32}$")
    address: str = Field(description="an IP address of this host; public ones need allow_public")
    port: int = Field(587, ge=0, le=65535, description="0 = any free port")
    tls: Literal["starttls", "none"] = "starttls"
    certificate: str | None = None
    key: str | None = None
    allow_public: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        refuse_public(self.address, self.allow_public)
        if self.tls != "none" and not (self.certificate and self.key):
            raise ValueError('tls = "starttls" needs certificate and key; or say tls = "none"')
        return self


def is_inside(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Private, loopback, link-local or shared (RFC 6598) and not the unspecified address."""
    if getattr(address, "ipv4_mapped", None) is not None:
        address = address.ipv4_mapped  # type: ignore[union-attr,assignment]
    if address.is_unspecified or address.is_multicast or address.is_reserved:
        return False
    shared = address.version == 4 and address in ipaddress.ip_network("100.64.0.0/10")
    return address.is_private or address.is_loopback or address.is_link_local or shared


def refuse_public(address: str, allow_public: bool) -> None:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        raise ValueError(f"{address!r} is no IP address; write the address itself, not a name") from None
    if not allow_public and not is_inside(parsed):
        raise ValueError(
            f"{address} is reachable from outside (0.0.0.0 and :: count as public); "
            "bind a private, loopback or shared address, or say allow_public = true"
        )


class AccountSettings(Section):
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    networks: tuple[str, ...] = Field((), description="client networks that need no password; non-global, ≤ /16")
    user: str | None = Field(None, description="AUTH name, when it differs from the account's")
    password_hash: SecretStr | None = Field(None, description="argon2id; make one with `relayctl account hash`")
    class_: MailClass = Field("bulk", alias="class")
    classes: tuple[MailClass, ...] = Field((), description="classes X-Tambo-Class may ask for beside the own one")
    pool: str = "default"
    unknown: UnknownPolicy = "retry"
    expire_seconds: Seconds | None = None
    weight: int = Field(1, ge=1, le=1000)

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class RelaydSettings(Section):
    hostname: str = "localhost"
    listeners: tuple[ListenerSettings, ...] = ()
    max_message_bytes: int = Field(26_214_400, ge=1024)
    max_recipients: int = Field(1000, ge=1, le=10_000)
    max_hops: int = Field(50, ge=1)
    max_connections: int = Field(2000, ge=1)
    max_connections_per_address: int = Field(200, ge=1)
    max_errors: int = Field(20, ge=1, description="per session, then 421")
    max_commands: int = Field(10_000, ge=10, description="per session, then 421")
    idle_seconds: Seconds = 300.0
    data_seconds: Seconds = Field(1800.0, description="whole content of one message")
    drain_seconds: Seconds = Field(30.0, description="how long SIGTERM waits for transactions under way")


class TimeoutSettings(Section):
    """Client time-outs by phase; minima of RFC 5321 §4.5.3.2 are the defaults where it gives one."""

    connect: Seconds = 30.0
    greeting: Seconds = 300.0
    ehlo: Seconds = 300.0
    starttls: Seconds = 120.0
    mail: Seconds = 300.0
    rcpt: Seconds = 300.0
    data: Seconds = 120.0
    content: Seconds = Field(180.0, description="per block written")
    end_of_data: Seconds = Field(600.0, ge=300)
    quit: Seconds = 5.0
    idle: Seconds = Field(5.0, description="how long an open session waits for more mail")


class RetrySettings(Section):
    steps_seconds: tuple[Seconds, ...] = ("1m", "5m", "15m", "30m", "1h", "2h", "4h")  # type: ignore[assignment]
    jitter: float = Field(0.1, ge=0, le=0.5, description="share of a step, up and down")
    expire_seconds: Seconds = 432_000.0
    delay_notice_seconds: Seconds = Field(14_400.0, description="0 = no delay notices")

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, data: object) -> object:
        if isinstance(data, dict) and "steps_seconds" not in data:
            data = {**data, "steps_seconds": ("1m", "5m", "15m", "30m", "1h", "2h", "4h")}
        return data


class SourceSettings(Section):
    address: str = Field(description='an address or a range "127.0.1.1-127.0.1.48"')
    hostname: str | None = Field(None, description="EHLO name; default delivery.hostname")
    weight: int = Field(1, ge=0, le=1000)


class PoolSettings(Section):
    name: str = Field(pattern=r"^[a-z0-9-]{1,32}$")
    sources: tuple[SourceSettings, ...] = ()


class DeliverySettings(Section):
    hostname: str = "localhost"
    port: int = Field(25, ge=1, le=65535, description="next hop's port; other than 25 only in a sandbox or a test")
    sandbox: bool = Field(False, description="connect to loopback addresses only")
    allow_private: bool = Field(False, description="next hops at private addresses")
    nameservers: tuple[str, ...] = Field((), description="address or address:port; empty = /etc/resolv.conf")
    ipv6: bool = True
    pools: tuple[PoolSettings, ...] = ()
    providers: str | None = Field(None, description="providers.toml; empty = the one that comes with the package")
    max_sessions: int = Field(1000, ge=1, description="open sessions of one process")
    max_in_flight: int = Field(2000, ge=1, description="claimed items of one process")
    recipients_per_transaction: int = Field(100, ge=1, le=1000)
    timeouts: TimeoutSettings = TimeoutSettings()
    retry: RetrySettings = Field(default_factory=lambda: RetrySettings.model_validate({}))
    drain_seconds: Seconds = Field(600.0, description="how long SIGTERM waits for transactions under way")
    dsn_window_seconds: Seconds = Field(300.0, description="failures of one message are gathered this long")


class MetricsSettings(Section):
    """One address:port a process; empty = none."""

    relayd: str = "127.0.0.1:9125"
    delivery: str = "127.0.0.1:9126"
    maintenance: str = "127.0.0.1:9127"


class LogSettings(Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "console"] = "json"


class SandboxSettings(Section):
    dns: str = "127.0.0.1:5353"
    address: str = Field("127.0.2.1", description="first address of the sandbox's mail hosts")
    port: int = Field(2525, ge=1, le=65535)
    directory: str = "var/sandbox"


class Settings(Section):
    queue: QueueSettings = QueueSettings()
    relayd: RelaydSettings = RelaydSettings()
    accounts: tuple[AccountSettings, ...] = ()
    delivery: DeliverySettings = Field(default_factory=lambda: DeliverySettings.model_validate({}))
    metrics: MetricsSettings = MetricsSettings()
    log: LogSettings = LogSettings()
    sandbox: SandboxSettings = SandboxSettings()
