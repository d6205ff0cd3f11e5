"""An open store, and a new one: descriptors, journal, locks, what ``store.json`` says. Knows no verb."""
