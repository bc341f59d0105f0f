"""What has happened: consumers of the events, the archive, history. Reads the queue's streams, never its mail."""
