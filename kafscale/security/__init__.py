"""Principals, SASL, TLS, the ACL snapshot, audit. Pure where it can be."""
