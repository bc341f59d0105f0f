"""relayctl: the operator's command (floor 3). One file per noun; a verb calls a lower room and prints."""
