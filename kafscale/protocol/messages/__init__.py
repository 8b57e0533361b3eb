"""The declarations: one module per API, each field once, with its wire type and its versions. No code, no bytes."""
