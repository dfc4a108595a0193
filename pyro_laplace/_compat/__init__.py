"""What is private to Pyro and to torch, and nothing else: whatever touches such a name lives here.

Where a release of theirs breaks the package, this is the room to look in.
"""
