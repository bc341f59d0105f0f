"""One mail transaction: what is to be sent, what became of each recipient, and the progress between the two. Pure."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from delivery.reply import Phase, Reply


@dataclass(frozen=True, slots=True)
class Transaction:
    """One message for some of its recipients. ``content``: CRLF line ends, not dot-stuffed.

    ``before_mail`` is asked before anything is written, ``before_dot`` when all but the final dot could be: False
    ends the transaction with nothing delivered (``aborted``). With ``before_dot`` the connection is closed as well,
    because no other way out of DATA exists.
    """

    reverse_path: str  # "" = null
    recipients: tuple[str, ...]
    content: bytes
    body: str = "7BIT"  # 7BIT | 8BITMIME
    smtputf8: bool = False
    ret: str = ""  # this and the next three as they came (RFC 3461 §4), "" = nothing said
    envid: str = ""
    notify: tuple[str, ...] = ()  # one per recipient, or () = nothing said of any; so orcpt
    orcpt: tuple[str, ...] = ()
    before_mail: Callable[[], bool] | None = None
    before_dot: Callable[[], Awaitable[bool]] | None = None


@dataclass(frozen=True, slots=True)
class RecipientResult:
    """What was said of one recipient, and in which phase.

    Exactly one of ``reply`` and ``lost`` (why no reply came) is set. ``unknown``: the final dot was written, maybe
    in part, and no reply to it was read, so the recipient may or may not have the message.
    """

    reply: Reply | None
    phase: Phase
    lost: str = ""
    unknown: bool = False
    local: bool = False  # the reply is our own: the peer was never asked

    @property
    def delivered(self) -> bool:
        return self.phase is Phase.END_OF_DATA and self.reply is not None and self.reply.positive


@dataclass(frozen=True, slots=True)
class TransactionResult:
    """One result per recipient, in the transaction's order. ``aborted``: one of the ``before_`` hooks said no.

    ``dsn``: the next hop was given the DSN parameters, so that it is its part to tell of success (RFC 3461 §5.2.1).
    """

    recipients: tuple[RecipientResult, ...]
    aborted: bool = False
    dsn: bool = False


class Exchange:
    """What each recipient of the transaction under way has been told so far."""

    __slots__ = ("_dsn", "accepted", "asked", "dotted", "refused", "results", "transaction")

    def __init__(self, transaction: Transaction, local: dict[int, Reply], dsn: bool = False) -> None:
        self.transaction = transaction
        self._dsn = dsn  # the next hop offers it
        self.results: list[RecipientResult | None] = [None] * len(transaction.recipients)
        for index, reply in local.items():
            self.results[index] = RecipientResult(reply, Phase.RCPT, local=True)
        self.asked = [index for index, result in enumerate(self.results) if result is None]
        self.accepted: list[int] = []  # answered 2xx at RCPT
        self.refused = False  # MAIL was: answers to the commands that follow it say nothing of their own
        self.dotted = False  # the final dot of a real message has been handed to the transport

    def answer(self, index: int, reply: Reply) -> None:
        """The reply to one RCPT."""
        if self.refused:
            return
        if reply.positive:
            self.accepted.append(index)
        else:
            self.results[index] = RecipientResult(reply, Phase.RCPT)

    def settle(self, reply: Reply, phase: Phase) -> None:
        """The reply that speaks for all who have none yet."""
        self._fill(RecipientResult(reply, phase))

    def lose(self, lost: str, phase: Phase) -> None:
        """No reply will come. Who was not yet answered at RCPT was lost there, the others in ``phase``."""
        late = RecipientResult(None, phase, lost=lost, unknown=self.dotted)
        for index in self.accepted:
            if self.results[index] is None:
                self.results[index] = late
        self._fill(RecipientResult(None, Phase.RCPT if phase is not Phase.MAIL else phase, lost=lost))

    def _fill(self, result: RecipientResult) -> None:
        self.results = [result if old is None else old for old in self.results]

    def result(self, aborted: bool = False) -> TransactionResult:
        """Raises ValueError while a recipient has no result: that would be a recipient forgotten."""
        results = tuple(result for result in self.results if result is not None)
        if len(results) != len(self.transaction.recipients):
            raise ValueError("a recipient without a result")
        return TransactionResult(results, aborted, self._dsn)


def refuse_all(transaction: Transaction, reply: Reply, phase: Phase = Phase.MAIL) -> TransactionResult:
    """The message cannot go this way at all: our own reply for every recipient."""
    return TransactionResult((RecipientResult(reply, phase, local=True),) * len(transaction.recipients))


def lose_all(transaction: Transaction, lost: str, aborted: bool = False) -> TransactionResult:
    """Nothing was written for this transaction."""
    return TransactionResult((RecipientResult(None, Phase.MAIL, lost=lost),) * len(transaction.recipients), aborted)
