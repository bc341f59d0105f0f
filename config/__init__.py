"""config: what every process needs before it does its own work (floor 0).

Settings (read once, frozen), the rule files with their validators, and the scaffolding of a process:
logging, the metrics and health port, signals. Knows nothing of mail.

=============  ==========================================================================
schema         sections, and how a wrong key or value is put into words
durations      ``"1h30m"`` → seconds; rates: ``"100/min"`` → Rate
addresses      what counts as inside; host:port; ranges of source addresses
settings       the tree of settings
check          rules that need more than one value
load           file + environment → Loaded, or ConfigError with every problem
reload         SIGHUP: validate, swap, say the difference
digest         one word for a whole configuration
providers      mailbox providers: who they are and what they tolerate (provider_file: the file they stand in)
logs           structlog
status         the HTTP port of metrics and health
process        signals, systemd notification, the frame of a process
start          arguments, configuration, log, loop, exit code of a process
=============  ==========================================================================
"""
