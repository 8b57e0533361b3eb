"""Links between workers: requests passed on to their owners, and the answers back."""
