"""Rounds over the queue that no worker makes: the dead, the late, the archive, the alarms. Above delivery and streams."""
