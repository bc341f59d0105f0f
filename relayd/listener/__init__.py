"""The SMTP server side: aiosmtpd's ``SMTP`` taken as a frozen base (pinned, see tests/test_aiosmtpd_contract.py).

``connection`` moves bytes and keeps time, ``session`` is the command loop; one file per verb adds what the verb does (``hello``,
``transaction``, ``data``, ``bdat``, ``auth``, ``starttls``); ``submission`` and ``inbound`` put the verbs together;
``gate`` counts connections, hears balancers (``proxy``) and puts TLS on before a session is built. ``arguments``,
``content`` and ``proxy`` are pure.
"""
