"""One page that shows how a network sees a picture: what each layer computes, and what flows back."""
