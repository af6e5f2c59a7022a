"""What every op shares: backend choice and argument checks. Knows no op."""
