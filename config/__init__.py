"""config: what every process needs before it does its own work (floor 0).

Settings (read once, frozen), the rule files with their validators, and the scaffolding of a process:
logging, the metrics and health port, signals. Knows nothing of mail.
"""
