"""What a family of models is: a card each, and the registry of all cards. Imports no torch."""
