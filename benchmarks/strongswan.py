"""Two hosts in network namespaces with a real IPsec tunnel between them: charon on both sides, the profiles of
``config/strongswan`` as they are, but for what the kernel of a test machine may lack.

ESP is charon's own (its kernel-libipsec plugin, over a TUN device ``ipsec0``), so no module of the kernel is needed;
that plugin knows no interface ids, and takes no trap policies: those lines are left out here. Needs root.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.harness import REPOSITORY

PACKAGES = (
    *("libstrongswan", "libstrongswan-standard-plugins", "libcharon-extra-plugins", "strongswan-libcharon"),
    *("strongswan-swanctl", "strongswan-charon", "charon-systemd", "strongswan-pki", "libcharon-extauth-plugins"),
)
CACHE = REPOSITORY / ".tools" / "strongswan"
PROFILES = REPOSITORY / "config" / "strongswan"
CHARON = """\
charon-systemd {
  load = random nonce kdf openssl pem pkcs1 pkcs8 x509 pubkey constraints revocation socket-default kernel-libipsec kernel-netlink vici updown
  install_routes = yes
  plugins { vici { socket = unix://%(vici)s } kernel-libipsec { allow_peer_ts = yes } }
  journal { default = -1 }
  filelog { log { path = %(log)s
    default = 1
    flush_line = yes } }
}
swanctl { load = pem pkcs1 pkcs8 x509 openssl vici
  plugins { vici { socket = unix://%(vici)s } } }
"""


def run(*words: str | Path, check: bool = True, seconds: float = 60.0) -> str:
    """Standard output; RuntimeError with standard error."""
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=seconds, check=False)
    if check and done.returncode:
        raise RuntimeError(f"{shlex.join(map(str, words))}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def unpacked() -> Path:
    """strongSwan of Debian, fetched once; nothing is installed. RuntimeError: apt-get could not."""
    root = CACHE / "root"
    if not (root / "usr/sbin/charon-systemd").exists():
        debs = CACHE / "debs"
        debs.mkdir(parents=True, exist_ok=True)
        words = ["apt-get", "-o", "APT::Sandbox::User=", "-o", "Debug::NoLocking=1", "-qq", "download", *PACKAGES]
        subprocess.run(words, cwd=debs, check=True, timeout=300, stdout=subprocess.DEVNULL)
        for deb in debs.glob("*.deb"):
            run("dpkg", "-x", deb, root)
    return root


def overlaid(words: Sequence[str | Path], configuration: Path) -> list[str]:
    """The words run where the unpacked packages are laid over /usr, and ``configuration`` over /etc."""
    root = unpacked()
    lay = f"mount -t overlay overlay -o lowerdir={root}/usr:/usr /usr"
    lay += f" && mount -t overlay overlay -o lowerdir={configuration}:{root}/etc:/etc /etc"
    return ["unshare", "--mount", "sh", "-c", f"{lay} && exec {shlex.join(map(str, words))}"]


@dataclass
class Gateway:
    """One end: a namespace with an outer address, an inner one, and charon."""

    name: str
    outer: str
    inner: str
    directory: Path
    charon: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def _vici(self) -> Path:
        return self.directory / "vici"

    def within(self, *words: str | Path) -> list[str]:
        return ["ip", "netns", "exec", self.name, *map(str, words)]

    def prepare(self, profile: str) -> None:
        """swanctl's folder: the profile, and the keys that :func:`certify` laid beside."""
        text = (PROFILES / profile).read_text()
        text = re.sub(r"(?m)^\s*(if_id_in|if_id_out) = .*\n", "", text)
        text = re.sub(r"= trap\b", "= start", text)
        folder = self.directory / "etc" / "swanctl"
        (folder / "swanctl.conf").write_text(text)
        known = {"vici": self._vici, "log": self.directory / "charon.log"}
        (self.directory / "etc" / "strongswan.conf").write_text(CHARON % known)

    def start(self) -> None:
        words = overlaid(["/usr/sbin/charon-systemd"], self.directory / "etc")
        with (self.directory / "charon.out").open("ab") as output:
            self.charon = subprocess.Popen(self.within(*words), stdout=output, stderr=output)
        deadline = time.monotonic() + 20
        while not self._vici.exists():
            if self.charon.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"charon does not run: {(self.directory / 'charon.out').read_text()[-2000:]}")
            time.sleep(0.05)
        self.swanctl("--load-all")

    def swanctl(self, *words: str, check: bool = True) -> str:
        uri = f"unix://{self._vici}"
        command = overlaid(["/usr/sbin/swanctl", *words, "--uri", uri], self.directory / "etc")
        return run(*self.within(*command), check=check)

    def stop(self) -> None:
        if self.charon is not None and self.charon.poll() is None:
            self.charon.terminate()
            self.charon.wait(20)
        self._vici.unlink(missing_ok=True)
        self.charon = None

    @property
    def log(self) -> str:
        path = self.directory / "charon.log"
        return path.read_text(errors="replace") if path.exists() else ""


def link(one: Gateway, other: Gateway) -> None:
    """Both namespaces, a wire between them, the inner addresses on loopback. Only :func:`unlink` takes them away."""
    for gateway in (one, other):
        run("ip", "netns", "add", gateway.name)
        run(*gateway.within("ip", "link", "set", "lo", "up"))
        run(*gateway.within("ip", "address", "add", f"{gateway.inner}/32", "dev", "lo"))
    run("ip", "-n", one.name, "link", "add", "wan", "type", "veth", "peer", "name", "wan", "netns", other.name)
    for gateway in (one, other):
        run("ip", "-n", gateway.name, "address", "add", f"{gateway.outer}/24", "dev", "wan")
        run("ip", "-n", gateway.name, "link", "set", "wan", "up")


def unlink(*gateways: Gateway) -> None:
    for gateway in gateways:
        gateway.stop()
        run("ip", "netns", "delete", gateway.name, check=False)


def certify(relay: Gateway, agency: Gateway) -> None:
    """An authority on each side; each trusts the other's, as two institutions do."""
    authorities = {}
    for gateway, name in ((relay, "relay"), (agency, "agency")):
        folder = gateway.directory / "etc" / "swanctl"
        for part in (
            "x509",
            "x509ca",
            "private",
            "conf.d",
            "pubkey",
            "rsa",
            "ecdsa",
            "pkcs8",
            "pkcs12",
            "x509aa",
            "x509ac",
            "x509crl",
            "x509ocsp",
            "bliss",
        ):
            (folder / part).mkdir(parents=True, exist_ok=True)
        os.chmod(folder / "private", 0o700)
        authorities[name] = _authority(gateway.directory, name)
    for gateway, name, identity, peer in (
        (relay, "relay", "relay.tambo.example", "agency"),
        (agency, "agency", "vpn.agency.example", "relay"),
    ):
        folder = gateway.directory / "etc" / "swanctl"
        _issue(gateway.directory, name, identity, folder)
        for each in (peer, name):
            (folder / "x509ca" / f"{each}-ca.pem").write_bytes(authorities[each].read_bytes())


def _openssl(*words: str | Path) -> None:
    run("openssl", *words)


def _authority(directory: Path, name: str) -> Path:
    key, certificate = directory / "ca.key", directory / "ca.pem"
    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384", "-nodes", "-keyout", key)
    ours = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")
    _openssl("req", "-x509", *new, "-out", certificate, "-days", "30", "-subj", f"/CN={name} authority", *ours)
    return certificate


def _issue(directory: Path, name: str, identity: str, folder: Path) -> None:
    key, request = folder / "private" / f"{name}.key", directory / "request.pem"
    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384", "-nodes", "-keyout", key)
    _openssl("req", "-new", *new, "-out", request, "-subj", f"/CN={identity}")
    extensions = directory / "extensions"
    extensions.write_text(f"subjectAltName=DNS:{identity}\n")
    signed_by = ("-CA", directory / "ca.pem", "-CAkey", directory / "ca.key", "-CAcreateserial")
    certificate = folder / "x509" / f"{name}.pem"
    _openssl("x509", "-req", "-in", request, *signed_by, "-days", "20", "-extfile", extensions, "-out", certificate)
