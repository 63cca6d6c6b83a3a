"""What several sources share: walking folders, shards, tars, pickles."""
