"""The part of a DSN that people read: Spanish first, English after it, the remote's own words in both. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from delivery.outcome import EXPIRED
from delivery.report import DsnRecord

# RFC 3463: a status without its class, else its subject ("1."), else anything.
_MEANING: dict[str, tuple[str, str]] = {
    "1.1": ("La dirección no existe.", "The address does not exist."),
    "1.2": ("El dominio de la dirección no existe.", "The domain of the address does not exist."),
    "1.10": ("El dominio no recibe correo.", "The domain does not accept mail."),
    "1.": ("La dirección no fue aceptada.", "The address was not accepted."),
    "2.1": ("El buzón está desactivado.", "The mailbox is disabled."),
    "2.2": ("El buzón está lleno.", "The mailbox is full."),
    "2.3": ("El mensaje es demasiado grande para el buzón.", "The message is too large for the mailbox."),
    "2.": ("El buzón no acepta el mensaje.", "The mailbox does not accept the message."),
    "3.4": ("El mensaje es demasiado grande.", "The message is too large."),
    "3.": ("El servidor de destino tiene un problema.", "The destination's server has a problem."),
    "4.": ("No se pudo llegar al servidor de destino.", "The destination's server could not be reached."),
    "5.": ("Los servidores no se entendieron.", "The servers did not understand each other."),
    "6.": ("El servidor de destino no admite el contenido.", "The destination's server cannot take the content."),
    "7.": ("El servidor de destino rechaza el mensaje.", "The destination's server refuses the message."),
    "": ("El servidor de destino no aceptó el mensaje.", "The destination's server did not accept the message."),
}
_EXPIRED = ("Se agotó el tiempo de entrega.", "The time for delivery ran out.")

_OPENING = {
    "failed": (
        "Este es el sistema de correo de {host}.\n\nSu mensaje del {arrived} no pudo ser entregado a:",
        "This is the mail system at {host}.\n\nYour message of {arrived} could not be delivered to:",
    ),
    "delayed": (
        "Este es el sistema de correo de {host}.\n\nSu mensaje del {arrived} todavía no ha sido entregado a:",
        "This is the mail system at {host}.\n\nYour message of {arrived} has not been delivered yet to:",
    ),
    "relayed": (
        "Este es el sistema de correo de {host}.\n\n"
        "Su mensaje del {arrived} fue aceptado por el servidor de correo de:",
        "This is the mail system at {host}.\n\nYour message of {arrived} was accepted by the mail server of:",
    ),
}
_CLOSING = {
    "failed": ("No se harán más intentos.", "No more attempts will be made."),
    "delayed": (
        "No tiene que hacer nada: se seguirá intentando{until}.",
        "There is nothing that you have to do: attempts go on{until}.",
    ),
    "relayed": (
        "Ese servidor no confirma la entrega en el buzón: no recibirá otra confirmación.",
        "That server does not confirm delivery to the mailbox: you will get no other confirmation.",
    ),
}
_TOO_LARGE = (
    "El mensaje es demasiado grande para devolverlo entero; se adjunta su encabezado.",
    "The message is too large to be returned whole; its header is attached.",
)
_UNTIL = (" hasta {until}", " until {until}")


def text_for_people(
    records: Sequence[DsnRecord], kind: str, host: str, arrived: str, until: str, *, too_large: bool = False
) -> str:
    """``arrived``, ``until``: dates as they shall be read, "" = not told. ``too_large``: all of the message was asked
    for and is not returned. CRLF line ends."""
    halves: list[str] = []
    for language in (0, 1):
        told_until = _UNTIL[language].format(until=until) if until else ""
        opening = _OPENING[kind][language].format(host=host, arrived=arrived)
        entries = [_entry(record, language) for record in records]
        closing = _CLOSING[kind][language].format(until=told_until)
        notes = [closing, _TOO_LARGE[language]] if too_large else [closing]
        halves.append("\n\n".join([opening, *entries, *notes]))
    return "\n\n----------\n\n".join(halves).replace("\n", "\r\n") + "\r\n"


def _entry(record: DsnRecord, language: int) -> str:
    words = record.diagnostic_code.partition("; ")[2]
    host = f"{_line(record.remote_mta)}: " if record.remote_mta else ""
    lines = [f"  <{_line(record.recipient)}>"]
    if not record.status.startswith("2"):
        lines.append(f"    {meaning(record.status)[language]}")
    if words:
        lines.append(f"    {host}{_line(words)}")
    return "\n".join(lines)


def meaning(status: str) -> tuple[str, str]:
    """What an RFC 3463 status says to people, in Spanish and English."""
    if status == EXPIRED:
        return _EXPIRED
    detail = status.partition(".")[2]
    return _MEANING.get(detail) or _MEANING.get(detail.partition(".")[0] + ".") or _MEANING[""]


def _line(text: str) -> str:
    """One line without control characters, so that a peer's words stay where they are quoted."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
