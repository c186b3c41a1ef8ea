"""RAFT and ReST: at equal cost, on real text, killed and resumed."""
