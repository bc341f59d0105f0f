"""Settings of every process: one frozen tree, read once, validated as a whole.

Shapes and units stand in the field names (``_seconds``, ``_bytes``); durations in TOML may also be
written ``"5m"``, ``"1h30m"``, ``"5d"``. Unknown keys are refused. Loading, provenance and error texts
live in :mod:`config.load`; this module knows only what a valid tree is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal, Self
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, Field, SecretStr, field_validator, model_validator

from config.accounts import AccountSettings, MailClass
from config.addresses import (
    DomainPattern,
    Host,
    Hostname,
    InsidePort,
    IPNetwork,
    Nameserver,
    SourceAddress,
    expand,
    hostname,
    is_inside,
    refuse_public,
)
from config.durations import Seconds, UnknownPolicy, seconds, unknown_policy
from config.schema import Section, misfit

__all__ = [
    "AccountSettings",
    "AlarmSettings",
    "ArchiveSettings",
    "DeliverySettings",
    "IPNetwork",
    "InboundSettings",
    "ListenerSettings",
    "LogSettings",
    "MailClass",
    "MetricsSettings",
    "PoolSettings",
    "QueueSettings",
    "QuotaSettings",
    "RelaydSettings",
    "RetrySettings",
    "RouteSettings",
    "SandboxSettings",
    "Seconds",
    "Section",
    "Settings",
    "SigningSettings",
    "SourceSettings",
    "StreamSettings",
    "TimeoutSettings",
    "UnknownPolicy",
    "is_inside",
    "refuse_public",
    "seconds",
    "unknown_policy",
]


def queue_url(value: str) -> str:
    if not value.startswith(("unix:///", "redis://", "rediss://")):
        raise ValueError("write unix:///path, redis://host:port/0 or rediss://host:port/0")
    return value


QueueUrl = Annotated[str, AfterValidator(queue_url)]


class QueueSettings(Section):
    url: QueueUrl = Field("unix:///run/tambo/queue.sock", description="unix:///path, redis://host:port/0 or rediss://…")
    password: SecretStr | None = None
    shards: int = Field(1, ge=1, le=64, description="fixed at installation")
    durability: Literal["always", "relaxed"] = Field("always", description="relaxed accepts appendfsync everysec")
    memory_mark: float = Field(0.85, gt=0, le=1, description="share of the memory limit at which put is refused (452)")
    memory_limit_mb: int = Field(0, ge=0, description="0 = the server's maxmemory, else 75 % of the machine")
    lease_seconds: Seconds = Field(30.0, ge=1, le=300, description="a worker that is silent longer loses its items")
    put_deadline_seconds: Seconds = Field(30.0, ge=1, le=240)
    idempotency_seconds: Seconds = Field(86400.0)
    events_keep: int = Field(1_000_000, ge=1000, description="entries kept in each shard's event stream")
    disk_mark_mb: int = Field(
        1024, ge=0, description="free space on the server's disk below which put is refused (452)"
    )
    directory: str | None = Field(None, description="the server's directory, where it may not be asked for it")
    dictionaries: bool = Field(True, description="compress against the first message of a campaign")


class ListenerSettings(Section):
    name: str = Field(pattern=r"^[a-z0-9-]{1,32}$")
    address: str = Field(description="an IP address of this host; public ones need allow_public")
    port: int = Field(587, ge=0, le=65535, description="0 = any free port")
    kind: Literal["submission", "inbound"] = Field(
        "submission", description="inbound takes returned mail only, in a process of its own"
    )
    tls: Literal["implicit", "starttls", "none"] = "starttls"
    certificate: str | None = None
    key: str | None = None
    allow_public: bool = False
    interface: str | None = Field(
        None, pattern=r"^[^\s/]{1,15}$", description="device that connections must come in by (SO_BINDTODEVICE)"
    )
    proxy_from: tuple[str, ...] = Field(
        (), description="networks of balancers, which must speak the PROXY protocol, version 2"
    )
    max_connections: int | None = Field(None, ge=1, description="of this listener in one process")

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = []
        try:
            refuse_public(self.address, self.allow_public)
        except ValueError as error:
            problems.append(("address", f"{error}, or allow_public = true"))
        if self.tls != "none" and not (self.certificate and self.key):
            problems.append(("tls", f'"{self.tls}" needs certificate and key; or say tls = "none"'))
        if self.tls == "none" and self.allow_public and self.interface is None:
            why = '"none" is for networks that are trusted: not with allow_public = true, unless interface names the way in'
            problems.append(("tls", why))
        if problems:
            raise misfit(*problems)
        return self


class RelaydSettings(Section):
    hostname: Hostname = "localhost"
    listeners: tuple[ListenerSettings, ...] = ()
    max_message_bytes: int = Field(26_214_400, ge=1024, le=134_217_728)
    max_data_bytes: int = Field(1_073_741_824, ge=1024, description="content one process holds at once, then 452")
    max_recipients: int = Field(1000, ge=1, le=10_000)
    max_hops: int = Field(50, ge=1)
    max_connections: int = Field(2000, ge=1)
    max_connections_per_address: int = Field(200, ge=1)
    max_errors: int = Field(20, ge=1, description="per session, then 421")
    max_commands: int = Field(10_000, ge=10, description="per session, then 421")
    auth_failures_per_address: int = Field(10, ge=1, description="within the window, then 454 as long; IPv6 by /64")
    auth_failures_per_user: int = Field(20, ge=1, description="the same for who never got in from that address")
    auth_window_seconds: Seconds = Field(600.0, ge=10)
    idle_seconds: Seconds = 300.0
    data_seconds: Seconds = Field(1800.0, description="whole content of one message")
    drain_seconds: Seconds = Field(30.0, description="how long SIGTERM waits for transactions under way")

    @model_validator(mode="after")
    def _room_for_one(self) -> Self:
        if self.max_data_bytes < self.max_message_bytes:
            raise misfit(("max_data_bytes", "less than max_message_bytes: the largest message would never fit"))
        return self


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
    steps_seconds: tuple[Seconds, ...] = (60.0, 300.0, 900.0, 1800.0, 3600.0, 7200.0, 14_400.0)
    jitter: float = Field(0.1, ge=0, le=0.5, description="share of a step, up and down")
    expire_seconds: Seconds = 432_000.0
    delay_notice_seconds: Seconds = Field(14_400.0, description="0 = no delay notices")

    @field_validator("steps_seconds")
    @classmethod
    def _some_steps(cls, steps: tuple[float, ...]) -> tuple[float, ...]:
        if not steps or min(steps) < 1:
            raise ValueError("at least one step, each of at least 1 s; the last one repeats")
        return steps


class SourceSettings(Section):
    address: SourceAddress = Field(description='an address or a range "127.0.1.1-127.0.1.48"')
    hostname: Hostname | None = Field(None, description="EHLO name; default delivery.hostname")
    weight: int = Field(1, ge=0, le=1000, description="0 = not used")

    @property
    def addresses(self) -> tuple[str, ...]:
        """The address, or all of the range in order."""
        return expand(self.address)


class PoolSettings(Section):
    name: str = Field(pattern=r"^[a-z0-9-]{1,32}$")
    sources: tuple[SourceSettings, ...] = ()


class DeliverySettings(Section):
    hostname: Hostname = "localhost"
    port: int = Field(25, ge=1, le=65535, description="next hop's port; other than 25 only in a sandbox or a test")
    sandbox: bool = Field(False, description="connect to loopback addresses only")
    allow_private: bool = Field(False, description="next hops at private addresses")
    nameservers: tuple[Nameserver, ...] = Field((), description="address or address:port; empty = /etc/resolv.conf")
    ipv6: bool = True
    pools: tuple[PoolSettings, ...] = ()
    providers: str | None = Field(None, description="providers.toml; empty = the one that comes with the package")
    max_sessions: int = Field(1000, ge=1, description="open sessions of one process")
    max_in_flight: int = Field(2000, ge=1, description="claimed items of one process")
    max_in_flight_bytes: int = Field(
        268_435_456, ge=1_048_576, description="content of the claimed items of one process"
    )
    recipients_per_transaction: int = Field(100, ge=1, le=1000)
    timeouts: TimeoutSettings = TimeoutSettings()
    retry: RetrySettings = RetrySettings()
    drain_seconds: Seconds = Field(600.0, description="how long SIGTERM waits for transactions under way")
    dsn_window_seconds: Seconds = Field(300.0, description="what DSNs will say of one message is gathered this long")


class RouteSettings(Section):
    """Mail that goes to an authenticated smarthost instead of the recipient domain's MX hosts.

    Chosen by recipient domain before sender domain before account; the first route that matches. Domains are exact
    (``agency.pe``) or all below one (``*.agency.pe``).
    """

    name: str = Field(pattern=r"^[a-z0-9-]{1,32}$")
    recipient_domains: tuple[DomainPattern, ...] = ()
    sender_domains: tuple[DomainPattern, ...] = ()
    accounts: tuple[str, ...] = ()
    host: Host = Field(description="name or address; the certificate must be its")
    port: int = Field(587, ge=1, le=65535)
    tls: Literal["starttls", "implicit", "none"] = "starttls"
    ca_file: str | None = Field(None, description="authorities of the smarthost's certificate; empty = the system's")
    user: str | None = None
    password_file: str | None = Field(None, description="file of mode 0600")
    connections: int = Field(4, ge=1, le=1000, description="at once, of all processes together")
    messages_per_connection: int = Field(100, ge=1)
    pool: str = Field("default", description="whose sources connect to it")


class SigningSettings(Section):
    """DKIM keys and the key of signed return paths: files that their owner alone may read."""

    directory: str | None = Field(None, description="DKIM keys: <domain>/<selector>.pem; made by `relayctl dkim`")
    return_path_key: str | None = Field(None, description="made by `relayctl dkim return-path-key`")
    feedback_id: str | None = Field(
        None, pattern=r"^[A-Za-z0-9_-]{5,15}$", description="SenderId at the end of Feedback-ID; empty = no such field"
    )


class QuotaSettings(Section):
    timezone: str = Field("America/Lima", description="days, months and terms of quotas and rates end by this clock")
    allotment: int = Field(1000, ge=1, description="recipients that a shard of the queue takes from a bag at once")

    @field_validator("timezone")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ValueError, OSError):  # ZoneInfoNotFoundError is a KeyError
            raise ValueError("write a time zone of the IANA database, for instance America/Lima") from None
        except KeyError:
            raise ValueError("no such time zone; write one of the IANA database, for instance America/Lima") from None
        return name


def mailbox(text: str) -> str:
    """Comes back in lower case: ours are compared so."""
    local, at, domain = text.rpartition("@")
    if not at or not re.fullmatch(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]{1,64}", local):
        raise ValueError("write an address, for instance abuse@agency.pe")
    return f"{local}@{hostname(domain)}".lower()


Mailbox = Annotated[str, AfterValidator(mailbox)]


class InboundSettings(Section):
    """What a listener of ``kind = "inbound"`` takes: mail to signed return paths, and to these mailboxes."""

    domains: tuple[Hostname, ...] = Field((), description="domains of signed return paths")
    mailboxes: tuple[Mailbox, ...] = Field((), description="addresses that get unverified mail too, like abuse@…")
    max_message_bytes: int = Field(10_485_760, ge=1024, le=134_217_728)
    keep: int = Field(100_000, ge=100, description="returned mails kept until they are read")


class ArchiveSettings(Section):
    """Daily segments of what has happened, written by maintenance; see docs/archive.md."""

    directory: str | None = Field(
        None, description="where the segments lie; empty = no archive, queue.events_keep alone counts"
    )
    keep_in_stream: int = Field(
        200_000, ge=1000, description="archived entries left in each shard's stream, for who reads there"
    )
    days: int = Field(0, ge=0, description="a segment is kept so many days; 0 = for ever")
    days_by_kind: Mapping[str, int] = Field(
        default_factory=dict, description="kind → days, where it differs; 0 = for ever"
    )

    @field_validator("days_by_kind")
    @classmethod
    def _counted(cls, days: Mapping[str, int]) -> Mapping[str, int]:
        if any(count < 0 for count in days.values()):
            raise ValueError("days are 0 (for ever) or more")
        return days


class StreamSettings(Section):
    """Groups of consumers of the events."""

    group_expire_seconds: Seconds = Field(
        1_209_600.0, ge=60, description="a group nobody reads for longer is forgotten"
    )
    lag_alarm_seconds: Seconds = Field(3600.0, ge=1, description="a group that is further behind raises an alarm")


class AlarmSettings(Section):
    no_progress_seconds: Seconds = Field(
        300.0, ge=1, description="due mail, free limits and nothing settled for so long raise an alarm"
    )


class MetricsSettings(Section):
    """One address:port a process (port 0 = any free one); empty = none."""

    relayd: InsidePort = "127.0.0.1:9125"
    inbound: InsidePort = "127.0.0.1:9128"
    delivery: InsidePort = "127.0.0.1:9126"
    maintenance: InsidePort = "127.0.0.1:9127"


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
    routes: tuple[RouteSettings, ...] = ()
    signing: SigningSettings = SigningSettings()
    quota: QuotaSettings = QuotaSettings()
    inbound: InboundSettings = InboundSettings()
    delivery: DeliverySettings = DeliverySettings()
    archive: ArchiveSettings = ArchiveSettings()
    streams: StreamSettings = StreamSettings()
    alarms: AlarmSettings = AlarmSettings()
    metrics: MetricsSettings = MetricsSettings()
    log: LogSettings = LogSettings()
    sandbox: SandboxSettings = SandboxSettings()
