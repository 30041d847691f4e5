"""Is this machine ready? Each file looks at one thing, `report` puts together what they found."""
