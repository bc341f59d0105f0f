"""Records of DKIM keys as the relay holds them: what its operator would publish is in the sandbox's DNS at once."""

from __future__ import annotations

from pathlib import Path

from signing import keys, record


class Published:
    """The public keys of a signing directory, read anew when a file in it has changed."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._seen: tuple[tuple[str, int], ...] = ()
        self._records: dict[str, str] = {}

    def get(self, name: str) -> str | None:
        """The text of the record at ``<selector>._domainkey.<domain>``; None when there is no such key.

        A directory that cannot be read, or not just now, publishes nothing.
        """
        if self._directory is None or "._domainkey." not in name:
            return None
        try:
            seen = tuple(sorted((str(path), path.stat().st_mtime_ns) for path in self._directory.glob("*/*.pem")))
            if seen != self._seen:
                held = keys.read(self._directory) if seen else []
                self._records = {one.key.name.lower(): record.text(one.key) for one in held}
                self._seen = seen
        except (OSError, ValueError):
            return None
        return self._records.get(name)
