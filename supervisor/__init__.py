"""The supervisor: the parent process, the control plane."""
