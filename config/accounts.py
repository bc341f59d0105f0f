"""An account: who may submit, as what, and how much. The same model for the configuration file and for the queue's own
accounts (``relayctl account``)."""

from __future__ import annotations

import datetime
import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, AwareDatetime, ConfigDict, Field, SecretStr, field_validator, model_validator

from config.addresses import Hostname, ascii_domain
from config.durations import Seconds, UnknownPolicy
from config.schema import Section, misfit

MailClass = Literal["emergency", "transactional", "bulk"]

_LOCAL_PART = re.compile(r'[^\s@"<>,;:()\[\]\\]{1,64}')


def sender_pattern(text: str) -> str:
    """``notices@agency.pe`` · ``agency.pe`` (any local part) · ``*.agency.pe`` (any domain below) · ``*`` (anybody).

    Comes back as it is compared: lower case, the domain in A-labels. ``[192.0.2.1]`` counts as a domain.
    """
    value = text.strip().lower()
    if value == "*":
        return value
    local, at, domain = value.rpartition("@")
    start = f"{local}@" if at else "*." if domain.startswith("*.") else ""
    try:
        domain = ascii_domain(domain[2:] if start == "*." else domain)
    except ValueError:
        domain = ""
    if not domain or (at and not _LOCAL_PART.fullmatch(local)) or (start == "*." and domain.startswith("[")):
        raise ValueError("write an address (notices@agency.pe), a domain (agency.pe), *.agency.pe, or * for any sender")
    return start + domain


PoolName = Annotated[str, Field(pattern=r"^[a-z0-9-]{1,32}$")]  # never "route:…", which only a route gives
SenderPattern = Annotated[str, AfterValidator(sender_pattern)]


class AccountSettings(Section):
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    disabled: bool = Field(False, description="nothing may be submitted; what is queued goes on")
    # who it is
    networks: tuple[str, ...] = Field((), description="client networks that need no password; non-global, ≤ /16")
    user: str | None = Field(None, description="AUTH name, when it differs from the account's")
    password_hash: SecretStr | None = Field(None, description="argon2id; make one with `relayctl account hash`")
    previous_hash: SecretStr | None = Field(
        None, description="the password before it, which counts until previous_until"
    )
    previous_until: AwareDatetime | None = None
    password_networks: tuple[str, ...] = Field((), description="where the password counts; empty = everywhere")
    # as what it may send
    senders: tuple[SenderPattern, ...] = Field(
        (), description="addresses, domains, *.domains of reverse-path, From, Sender, Resent-From; empty = any"
    )
    class_: MailClass = Field("bulk", alias="class")
    classes: tuple[MailClass, ...] = Field((), description="classes X-Tambo-Class may ask for beside the own one")
    pool: PoolName = "default"
    pools: tuple[PoolName, ...] = Field((), description="pools X-Tambo-Pool may ask for beside the own one")
    unsigned: Literal["refuse", "flag"] = Field("flag", description="mail whose From domain has no DKIM key")
    return_path: Hostname | None = Field(None, description="domain of signed return paths; empty = the sender's own")
    # how its mail is handled
    unknown: UnknownPolicy = "retry"
    expire_seconds: Seconds | None = None
    dsn: Literal["mail", "stream"] = Field("mail", description="stream: failures are events only, no DSN is mailed")
    hide_client: bool = Field(False, description="no client in Received, and no Received fields from inside")
    seven_bit: bool = Field(False, description="8-bit content is made 7-bit before it is signed")
    # how much
    weight: int = Field(1, ge=1, le=1000)
    rate_minute: int = Field(0, ge=0, description="accepted recipients per minute; 0 = no limit")
    rate_hour: int = Field(0, ge=0)
    rate_day: int = Field(0, ge=0)
    max_message_bytes: int | None = Field(None, ge=1024)
    max_recipients: int | None = Field(None, ge=1)
    max_campaigns: int = Field(1000, ge=1, description="campaigns with mail in the queue at once")
    quota: Literal["none", "bag", "monthly"] = Field("none", description="what accepted recipients are taken from")
    allowance: int = Field(0, ge=0, description="recipients a month, with quota = monthly")
    term_from: datetime.date | None = Field(None, description="first day of a bag")
    term_until: datetime.date | None = Field(None, description="last day of a bag")
    parent: str | None = Field(None, description="account whose bag this one's is shared out from")
    test: bool = Field(False, description="test mode: nothing is taken from the quota")

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    @property
    def login(self) -> str | None:
        """The AUTH name; None when the account has no password."""
        return (self.user or self.name) if self.password_hash else None

    def hashes(self, now: float) -> tuple[str, ...]:
        """The hashes that count at ``now`` (Unix seconds), the newest first."""
        found = [self.password_hash] if self.password_hash else []
        if self.previous_hash and self.previous_until and now < self.previous_until.timestamp():
            found.append(self.previous_hash)
        return tuple(each.get_secret_value() for each in found)

    @property
    def metered(self) -> bool:
        """Whether accepted recipients are taken from a quota."""
        return self.quota != "none" and not self.test

    @field_validator("password_hash", "previous_hash")
    @classmethod
    def _argon2id(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value().startswith("$argon2id$"):
            raise ValueError("an argon2id hash begins with $argon2id$; make one with `relayctl account hash`")
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = []
        if self.quota == "monthly" and not self.allowance:
            problems.append(("allowance", 'missing; quota = "monthly" needs the recipients of a month'))
        if self.quota != "monthly" and self.allowance:
            problems.append(("allowance", 'only with quota = "monthly"'))
        if self.quota != "bag" and (self.term_from or self.term_until):
            problems.append(("term_from" if self.term_from else "term_until", 'only with quota = "bag"'))
        if self.term_from and self.term_until and self.term_until < self.term_from:
            problems.append(("term_until", "lies before term_from"))
        if (self.previous_hash is None) != (self.previous_until is None) or (
            self.previous_hash and not self.password_hash
        ):
            problems.append(("previous_until", "previous_hash and previous_until go together, beside password_hash"))
        if self.parent == self.name:
            problems.append(("parent", "an account is not its own parent"))
        if problems:
            raise misfit(*problems)
        return self
