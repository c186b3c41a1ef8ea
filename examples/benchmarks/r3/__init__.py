"""R³ on real text: query types, encoders, how rewards are gamed, and what each factor is worth."""
