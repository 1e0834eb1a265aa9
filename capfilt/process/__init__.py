"""This process and its children: signals, streams, temporary files, leases."""
