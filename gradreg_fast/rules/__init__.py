"""The rules: one operation's whole calculus in one class, and the registry that finds them."""
