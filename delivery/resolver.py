"""DNS for the router: MX and addresses through our recursive servers, cached, one question at a time for each name.

What may never happen: that an outage of DNS reads as "no such domain" or "no MX". SERVFAIL, REFUSED, time-outs and
garbled answers are TEMPORARY; only NXDOMAIN is NO_DOMAIN and only an empty NOERROR is NO_DATA. While DNS fails, an
expired answer is served for up to ``stale_seconds`` more, marked ``stale`` (RFC 8767).
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import dns.asyncquery
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.resolver

PAYLOAD = 1232  # bytes of UDP that are never fragmented on the way (DNS flag day 2020); more comes over TCP
MOST_RECORDS = 100  # of one answer; the rest is dropped
MOST_ALIASES = 8  # CNAMEs followed by us when the server does not


class Outcome(StrEnum):
    FOUND = "found"
    NO_DATA = "no data"  # the name exists, without records of this type
    NO_DOMAIN = "no such domain"  # NXDOMAIN
    BAD_NAME = "bad name"  # no domain name: cannot even be asked
    TEMPORARY = "temporary"


@dataclass(frozen=True, slots=True)
class MxAnswer:
    """``records``: (preference, host name without final dot; "" = the root, a null MX), lowest preference first."""

    outcome: Outcome
    records: tuple[tuple[int, str], ...] = ()
    text: str = ""  # why, unless found
    stale: bool = False


@dataclass(frozen=True, slots=True)
class AddressAnswer:
    """``addresses``: IPv4 before IPv6."""

    outcome: Outcome
    addresses: tuple[str, ...] = ()
    text: str = ""
    stale: bool = False


@dataclass(frozen=True, slots=True)
class _Answer:
    outcome: Outcome
    records: tuple[Any, ...] = ()  # dnspython's rdata
    ttl: float = 0.0
    text: str = ""
    stale: bool = False


@dataclass(frozen=True, slots=True)
class _Entry:
    answer: _Answer
    expires: float
    serve_until: float  # when DNS fails


_Key = tuple[dns.name.Name, dns.rdatatype.RdataType]


class Resolver:
    """``nameservers``: "address", "address:port" or "[v6]:port"; empty = /etc/resolv.conf, read now.

    ``timeout``: seconds for one server's answer; ``total``: for a question over all servers and rounds.
    """

    def __init__(
        self,
        nameservers: Sequence[str] = (),
        *,
        ipv6: bool = True,
        timeout: float = 3.0,
        total: float = 12.0,
        cache_size: int = 65_536,
        least_ttl: float = 60.0,
        most_ttl: float = 3600.0,
        negative_ttl: float = 300.0,
        failure_ttl: float = 5.0,
        stale_seconds: float = 3600.0,
        most_at_once: int = 128,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._servers = [server_of(text) for text in nameservers or _configured()]
        self._ipv6 = ipv6
        self._timeout = timeout
        self._total = total
        self._cache: OrderedDict[_Key, _Entry] = OrderedDict()
        self._cache_size = cache_size
        self._least_ttl, self._most_ttl, self._negative_ttl = least_ttl, most_ttl, negative_ttl
        self._failure_ttl, self._stale_seconds = failure_ttl, stale_seconds
        self._clock = clock
        self._under_way: dict[_Key, asyncio.Task[_Answer]] = {}
        self._slots = asyncio.Semaphore(most_at_once)

    async def mx(self, domain: str) -> MxAnswer:
        answer = await self._look_up(domain, dns.rdatatype.MX)
        records = tuple((int(r.preference), _host(r.exchange)) for r in answer.records)
        return MxAnswer(answer.outcome, records, answer.text, answer.stale)

    async def addresses(self, host: str) -> AddressAnswer:
        """A and, if enabled, AAAA. Found when either is; definite only when both are."""
        types = (dns.rdatatype.A, dns.rdatatype.AAAA) if self._ipv6 else (dns.rdatatype.A,)
        answers = await asyncio.gather(*(self._look_up(host, type_) for type_ in types))
        found = tuple(str(r.address) for answer in answers for r in answer.records)
        stale = any(answer.stale for answer in answers)
        if found:
            return AddressAnswer(Outcome.FOUND, found, "", stale)
        for outcome in (Outcome.TEMPORARY, Outcome.BAD_NAME, Outcome.NO_DOMAIN, Outcome.NO_DATA):
            for answer in answers:
                if answer.outcome is outcome:
                    return AddressAnswer(outcome, (), answer.text, stale)
        raise AssertionError("an answer without outcome")

    async def close(self) -> None:
        """Give up what is under way; who waits for it is cancelled."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- cache and single flight -----------------------------------------------------------------------------------

    async def _look_up(self, text: str, type_: dns.rdatatype.RdataType) -> _Answer:
        name = name_of(text)
        if name is None:
            return _Answer(Outcome.BAD_NAME, text=f"{text!r} is no domain name")
        key = (name, type_)
        entry = self._cache.get(key)
        if entry is not None and self._clock() < entry.expires:
            self._cache.move_to_end(key)
            return entry.answer
        task = self._under_way.get(key)
        if task is None:
            task = self._under_way[key] = asyncio.create_task(self._fetch(key), name=f"dns {type_.name} {text}")
            task.add_done_callback(lambda _: self._under_way.pop(key, None))
        return await asyncio.shield(task)  # a waiter that is cancelled does not take the question from the others

    async def _fetch(self, key: _Key) -> _Answer:
        async with self._slots:
            answer = await self._ask_all(*key)
        now = self._clock()
        old = self._cache.get(key)
        if answer.outcome is Outcome.TEMPORARY:
            serve_until = 0.0
            if old is not None and now < old.serve_until and _may_be_stale(old.answer, key):
                answer, serve_until = replace(old.answer, stale=True), old.serve_until
            self._keep(key, _Entry(answer, now + self._failure_ttl, serve_until))
            return answer
        most = self._most_ttl if answer.outcome is Outcome.FOUND else self._negative_ttl
        expires = now + max(self._least_ttl, min(answer.ttl, most))
        self._keep(key, _Entry(answer, expires, expires + self._stale_seconds))
        return answer

    def _keep(self, key: _Key, entry: _Entry) -> None:
        self._cache[key] = entry
        self._cache.move_to_end(key)
        while len(self._cache) > self._cache_size:
            self._cache.popitem(last=False)

    # -- the wire --------------------------------------------------------------------------------------------------

    async def _ask_all(self, name: dns.name.Name, type_: dns.rdatatype.RdataType) -> _Answer:
        """Two rounds over the servers, the last good one first, within the total time."""
        text = "no nameserver configured"
        try:
            async with asyncio.timeout(self._total):
                for _ in range(2):
                    for server in list(self._servers):
                        answer = await self._ask(name, type_, server)
                        if answer.outcome is not Outcome.TEMPORARY:
                            return answer
                        text = answer.text
                        self._servers.remove(server)  # the next question starts with another one
                        self._servers.append(server)
        except TimeoutError:
            text = f"no answer within {self._total:g} s"
        return _Answer(Outcome.TEMPORARY, text=f"{type_.name} of {_host(name)}: {text}")

    async def _ask(self, name: dns.name.Name, type_: dns.rdatatype.RdataType, server: tuple[str, int]) -> _Answer:
        address, port = server
        asked, ttl = name, float("inf")
        for _ in range(MOST_ALIASES):
            query = dns.message.make_query(asked, type_, use_edns=0, payload=PAYLOAD)
            try:
                response, _ = await dns.asyncquery.udp_with_fallback(
                    query, address, timeout=self._timeout, port=port, ignore_unexpected=True, ignore_errors=True
                )
                if response.rcode() not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
                    return _Answer(Outcome.TEMPORARY, text=f"{dns.rcode.to_text(response.rcode())} from {address}")
                chain = response.resolve_chaining()  # type: ignore[attr-defined]
            except (dns.exception.DNSException, OSError, EOFError, ValueError) as error:
                return _Answer(Outcome.TEMPORARY, text=f"{_said(error)} from {address}")
            ttl = min(ttl, chain.minimum_ttl)
            if chain.answer is not None:
                return _Answer(Outcome.FOUND, tuple(sorted(chain.answer)[:MOST_RECORDS]), ttl)
            if response.rcode() == dns.rcode.NXDOMAIN:
                return _Answer(Outcome.NO_DOMAIN, ttl=ttl, text=f"{_host(name)} does not exist")
            if chain.canonical_name == asked:
                return _Answer(Outcome.NO_DATA, ttl=ttl, text=f"{_host(name)} has no {type_.name} record")
            asked = chain.canonical_name  # an alias whose target the server left to us
        return _Answer(Outcome.TEMPORARY, text=f"too many aliases behind {_host(name)}")


def _may_be_stale(answer: _Answer, key: _Key) -> bool:
    """Only what leads to a delivery: nobody's mail is returned on the word of an expired answer."""
    return answer.outcome is Outcome.FOUND or (answer.outcome is Outcome.NO_DATA and key[1] == dns.rdatatype.MX)


def name_of(text: str) -> dns.name.Name | None:
    """The absolute name of a domain in A-labels, U-labels or both (IDNA 2003 by dnspython); None if it is none."""
    try:
        name = dns.name.from_text(text.removesuffix(".") + ".", dns.name.root, dns.name.IDNA_2003_Practical)
    except (dns.exception.DNSException, UnicodeError, ValueError):
        return None
    return name.canonicalize() if len(name) > 1 else None


def server_of(text: str) -> tuple[str, int]:
    """ "address", "v4:port" or "[v6]:port" → (address, port). Raises ValueError."""
    address, port = text, "53"
    if text.startswith("["):
        address, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":") or "53"
    elif text.count(":") == 1:
        address, _, port = text.partition(":")
    ipaddress.ip_address(address)
    return address, int(port)


def _configured() -> Iterable[str]:
    try:
        return [str(server) for server in dns.resolver.Resolver().nameservers]
    except dns.resolver.NoResolverConfiguration:
        return ()


def _host(name: dns.name.Name) -> str:
    """Text without the final dot; "" for the root."""
    return name.to_text(omit_final_dot=True).removesuffix(".").lower()


def _said(error: BaseException) -> str:
    return "no answer" if isinstance(error, dns.exception.Timeout) else f"{type(error).__name__}: {error}"
