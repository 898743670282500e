"""Mathematical operations with a reference and a fast form."""
