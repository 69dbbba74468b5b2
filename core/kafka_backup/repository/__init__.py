"""The object store: stores, keys, stored documents, commit logs, segments."""
