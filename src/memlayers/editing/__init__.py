"""Facts added, updated, forgotten and repaired in a taught memory; every edit can be undone."""
