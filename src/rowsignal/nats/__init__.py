"""NATS: the connection, the names of subjects, and key-value buckets."""
