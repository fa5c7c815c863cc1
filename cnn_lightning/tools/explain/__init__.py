"""One page that shows how a network processes a picture: what each layer computes, and its gradients."""
