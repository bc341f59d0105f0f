"""A message made ready for the queue as if it had been submitted, without a session: what an operator sends as a test.

The same header, Received field, signature and envelope as a submission's; what is not asked is who the client is.
"""

from __future__ import annotations

from typing import cast

from aiosmtpd.smtp import Envelope as Transaction

from config.accounts import AccountSettings
from relayd import policy
from relayd.policy import Client
from relayd.prepare import Preparation, Prepared
from relayd.replies import Reply


def prepared(
    preparation: Preparation, account: AccountSettings, reverse_path: str, recipient: str, content: bytes, now: float
) -> Prepared | Reply:
    """Or the refusal that a session of this account would have heard. ``now`` in Unix seconds."""
    utf8 = not (reverse_path + recipient).isascii()
    client = Client("127.0.0.1", account, "localhost", "ESMTP")
    refusal = policy.may_submit(client) or policy.check_reverse_path(reverse_path, utf8)
    refusal = refusal or policy.may_send_as(account, reverse_path) or policy.check_recipient(recipient, utf8)
    if refusal is not None:
        return refusal
    transaction = Transaction()
    transaction.mail_from, transaction.rcpt_tos, transaction.content = reverse_path, [recipient], content
    cast(list[list[str]], transaction.rcpt_options).append([])  # a list per recipient, as the handler keeps them
    transaction.smtp_utf8 = utf8
    return preparation.prepare(client, transaction, now)
