"""replay_state_update and replay_flush, beside the plain step and a float64 recurrence."""
