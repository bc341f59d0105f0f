"""What the sandbox's DNS says: pure, from a query message to its response (RFC 1034 §4.3.2, RFC 2308, RFC 7505)."""

from __future__ import annotations

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from sandbox.published import Published
from sandbox.scenario import DnsMode, DomainPlan
from sandbox.spf import LookupFailed
from sandbox.world import World
from signing.record import strings

_RCODES: dict[DnsMode, dns.rcode.Rcode] = {"servfail": dns.rcode.SERVFAIL, "refused": dns.rcode.REFUSED}


class Zones:
    """Authoritative for every name there is: what the world does not list is NXDOMAIN."""

    def __init__(self, world: World, published: Published | None = None) -> None:
        self._world = world
        self._published = published or Published(None)
        self._ttl = world.scenario.dns.ttl_seconds
        self._others: dict[str, dict[str, list[str]]] = {}
        for plan in world.scenario.records:
            self._others.setdefault(plan.name.lower(), {}).setdefault(plan.type, []).extend(plan.values)

    def lookup(self, name: str, kind: str) -> list[str]:
        """What a receiver in the sandbox finds: addresses, ``10 mx.example.``, TXT values joined; [] = none.

        Raises LookupFailed where the DNS does not answer, or names what cannot be asked for.
        """
        try:
            query = dns.message.make_query(name, kind)
        except (dns.exception.DNSException, ValueError) as error:
            raise LookupFailed(f"{name}: {error}") from None
        response = self.respond(query)
        if response is None or response.rcode() not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
            raise LookupFailed(f"{name}: {'no answer' if response is None else response.rcode().name}")
        found = [rdata for rrset in response.answer if rrset.rdtype == query.question[0].rdtype for rdata in rrset]
        if kind == "TXT":
            return [b"".join(rdata.strings).decode("utf-8", "replace") for rdata in found]
        return [rdata.to_text() for rdata in found]

    def respond(self, query: dns.message.Message) -> dns.message.Message | None:
        """The response; None when the DNS is to stay silent."""
        response = dns.message.make_response(query)
        if len(query.question) != 1:
            response.set_rcode(dns.rcode.FORMERR)
            return response
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        mode = self._mode(name)
        if mode == "silent":
            return None
        if mode in _RCODES:
            response.set_rcode(_RCODES[mode])
            return response
        response.flags |= dns.flags.AA
        self._fill(response, name, question.rdtype)
        return response

    def _mode(self, name: str) -> DnsMode:
        """The mode of the whole DNS, else of the name or the nearest one above it."""
        modes = self._world.dns_modes
        while modes:
            if "" in modes:
                return modes[""]
            if name in modes:
                return modes[name]
            if "." not in name:
                break
            name = name.partition(".")[2]
        return "normal"

    def _fill(self, response: dns.message.Message, name: str, rdtype: dns.rdatatype.RdataType) -> None:
        exists = False
        for _ in range(4):  # a chain of aliases ends somewhere
            records = self._records(name)
            if records is None:
                break
            exists = True
            alias = records.get("CNAME")
            wanted = records.get(dns.rdatatype.to_text(rdtype), [])
            if alias and rdtype != dns.rdatatype.CNAME:
                response.answer.append(self._rrset(name, "CNAME", alias))
                name = alias[0].rstrip(".")
                continue
            if wanted:
                response.answer.append(self._rrset(name, dns.rdatatype.to_text(rdtype), wanted))
            break
        if not exists:
            response.set_rcode(dns.rcode.NXDOMAIN)
        if not response.answer:
            soa = f"ns.test. hostmaster.test. 1 3600 600 86400 {self._ttl}"
            response.authority.append(self._rrset(name.rpartition(".")[2], "SOA", [soa]))

    def _rrset(self, name: str, rdtype: str, texts: list[str]) -> dns.rrset.RRset:
        return dns.rrset.from_text_list(dns.name.from_text(name), self._ttl, dns.rdataclass.IN, rdtype, texts)

    def _records(self, name: str) -> dict[str, list[str]] | None:
        """Type → record texts of one name; None when the name does not exist."""
        plan = self._plan(name)
        key = self._published.get(name)
        others = self._others.get(name, {})
        records: dict[str, list[str]] = {kind: texts for kind, texts in others.items() if kind != "TXT"}
        alias = plan.alias if plan is not None else self._world.host_aliases.get(name)
        if alias:
            return {"CNAME": [alias + "."]}
        if plan is not None:
            records["MX"] = [_mx_text(preference, host) for preference, host in plan.hosts()]
        texts = [
            *(plan.txt if plan is not None and not others else ()),
            *others.get("TXT", ()),
            *([key] if key else ()),
        ]
        if texts:
            records["TXT"] = [_txt(text) for text in texts]
        host = self._world.hosts.get(name)
        if host is not None and host.address:
            records["AAAA" if ":" in host.address else "A"] = [host.address]
        if not records and plan is None:
            return {} if self._has_below(name) else None
        return records

    def _has_below(self, name: str) -> bool:
        """Whether the name exists only because others end in it (RFC 8020: no NXDOMAIN then)."""
        hosts = (host.name for host in self._world.hosts.values() if host.address)
        below = (*self._world.domains, *self._world.host_aliases, *self._others, *hosts)
        return any(other.endswith("." + name) for other in below)

    def _plan(self, name: str) -> DomainPlan | None:
        domain = self._world.domains.get(name)
        if domain is not None:
            return domain.plan
        while "." in name:
            name = name.partition(".")[2]
            above = self._world.domains.get(name)
            if above is not None and above.plan.wildcard:
                return above.plan
        return None


def _txt(text: str) -> str:
    """As a zone file has it: strings of 255 octets at most, quotes and backslashes escaped."""
    return " ".join('"' + part.replace("\\", "\\\\").replace('"', '\\"') + '"' for part in strings(text)) or '""'


def _mx_text(preference: int, host: str) -> str:
    return "0 ." if host == "." else f"{preference} {host}."
