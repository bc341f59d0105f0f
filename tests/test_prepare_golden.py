"""Whole messages before and after, as files: ``<name>.before.eml`` (LF) and ``<name>.after.eml``.

To renew one after a change that is meant: TAMBO_GOLDEN=write pytest tests/test_prepare_golden.py, and read the
difference.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from aiosmtpd.smtp import Envelope as Transaction

from config.settings import AccountSettings
from relayd.policy import Client
from relayd.prepare import Keys, Preparation, Prepared, Terms

DIRECTORY = Path(__file__).parent / "golden" / "prepare"
TERMS = Terms("relay.test", 1000, 50, expire_seconds=86400, notice_seconds=0, feedback_id="tambo")
ACCOUNTS = {
    "campaign": {},
    "hidden": {"hide_client": True},
    "long": {},
    "sevenbit": {"seven_bit": True},
}


@pytest.mark.parametrize("name", ACCOUNTS)
def test_before_and_after(name: str) -> None:
    source = "campaign" if name == "hidden" else name
    transaction = Transaction()
    transaction.mail_from, transaction.rcpt_tos = "notices@b.example", ["ana@example.org"]
    transaction.rcpt_options = [[]]  # type: ignore[list-item]
    transaction.content = (DIRECTORY / f"{source}.before.eml").read_bytes()
    account = AccountSettings.model_validate({"name": "app", **ACCOUNTS[name]})
    client = Client("10.1.2.3", account, "app.inside", "ESMTPSA")
    preparation = Preparation(TERMS, Keys(), lambda account, key: "0123456789abcdefghij")
    prepared = preparation.prepare(client, transaction, 1_795_224_326.7)
    assert isinstance(prepared, Prepared)
    golden = DIRECTORY / f"{name}.after.eml"
    if os.environ.get("TAMBO_GOLDEN") == "write":
        golden.write_bytes(prepared.message.content)
    assert prepared.message.content == golden.read_bytes()
