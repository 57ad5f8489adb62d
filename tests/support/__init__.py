"""What the behaviour tests stand on: scripted TCP peers, namespaces, real servers, leak checks."""
