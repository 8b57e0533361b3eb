"""Behind one address: requests that concern other workers are passed on to them, whole or in parts."""
