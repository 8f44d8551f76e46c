"""What every part that uses NATS shares: its connection, the names of subjects, buckets."""
