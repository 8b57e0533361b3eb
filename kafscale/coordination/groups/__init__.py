"""Consumer groups: the coordinator as a pure state machine. It knows no socket, no clock, no store."""
